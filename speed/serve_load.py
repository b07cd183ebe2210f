"""Load on a server of completions: throughput, latency, memory, and whether the answers are right.

    PYTHONPATH=. python speed/serve_load.py URL [--clients 8] [--pid PID] [--peer URL]

Each client streams greedy completions from /v1/completions, one after the other, of a few prompts.
Each prompt is sent alone before, and every answer under load must equal that text. Refusals (429,
503) are counted, and their clients wait as long as Retry-After states. --pid prints the resident
memory of the server in the first and the last quarter, on Linux. --peer is another server with the
same weights, such as llama-server: the same load alternates between both, and ratios are printed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

# Few prompts, so that each answer can be compared with the one it had alone.
PROMPTS = tuple(f"def {name}(xs):\n    " for name in ("mean", "first", "add", "parse", "join"))
PERCENTILES = (50, 95, 99)
TIMEOUT = 600.0  # seconds without a byte
REFUSED = (429, 503)


class Refused(Exception):
    """The server is busy."""


@dataclass
class Figures:
    """The results of one load.

    Attributes:
      first: seconds from each request to its first text.
      between: seconds between events of a stream.
      counts: answers that are right, wrong, refused and broken.
      errors: how often each error broke an answer.
      seconds: the length of the load.
      memory: resident bytes of the server over time.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Right answers per second."""
        return self.counts["right"] / self.seconds

    def add(self, other: Figures) -> None:
        """Adds the figures of another load of the same server."""
        self.first += other.first
        self.between += other.between
        self.counts += other.counts
        self.errors += other.errors
        self.seconds += other.seconds
        self.memory += other.memory

    def lines(self) -> list[str]:
        """Returns the figures as text."""
        counts = ", ".join(f"{self.counts[name]:,} {name}" for name in KINDS)
        lines = [f"  {self.rate:.2f} requests/s: {counts}"]
        for name, seconds in (("first token", self.first), ("between events", self.between)):
            parts = [f"p{p} {1e3 * percentile(seconds, p):.1f} ms" for p in PERCENTILES]
            lines.append(f"  {name}: {', '.join(parts)}")
        for error, count in self.errors.most_common(3):
            lines.append(f"  {count:,} x {error}")
        quarter = len(self.memory) // 4
        if quarter:
            first = np.mean(self.memory[:quarter]) / 2**20
            last = np.mean(self.memory[-quarter:]) / 2**20
            lines.append(f"  memory: {first:.0f} MiB in the first quarter, {last:.0f} in the last")
        return lines


KINDS = ("right", "wrong", "refused", "broken")


def percentile(seconds: Sequence[float], share: float) -> float:
    """Returns a percentile, NaN of nothing."""
    return float(np.percentile(seconds, share)) if seconds else float("nan")


def stream(url: str, key: str, body: dict, figures: Figures) -> str:
    """Returns the text of a streamed completion, and adds its times. Raises Refused."""
    parts = urlsplit(url)
    # A connection per request: refusals and broken streams then leave no state behind.
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        last = time.monotonic()
        pieces: list[str] = []
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status in REFUSED:
            # A client that tries again at once would measure the refusals and not the server.
            time.sleep(float(response.headers.get("retry-after", 1)))
            raise Refused
        if response.status != 200:
            raise http.client.HTTPException(f"{response.status}: {response.read(300)!r}")
        for line in response:
            data = line.strip().removeprefix(b"data: ")
            # The only proper end of a stream; one that stops without it counts as broken.
            if data == b"[DONE]":
                return "".join(pieces)
            if line.startswith(b"data: "):
                piece = "".join(choice["text"] for choice in json.loads(data)["choices"])
                now = time.monotonic()
                # The first event's time includes queueing and reading the prompt, so that it has
                # its own figure.
                (figures.between if pieces else figures.first).append(now - last)
                last = now
                pieces.append(piece)
        raise http.client.HTTPException("the stream ended without [DONE]")
    finally:
        connection.close()


def load(url: str, options: argparse.Namespace, expected: dict[str, str], pid: int) -> Figures:
    """Returns the figures of a load.

    Args:
      url: of the server.
      options: clients, seconds and tokens.
      expected: the text of each prompt.
      pid: the server's process; 0 for no measure of its memory.
    """
    total, start = Figures(), time.monotonic()
    end = start + options.seconds
    # One per thread, added up at the end: no lock disturbs the measured times.
    results = [Figures() for _ in range(options.clients)]

    def run(number: int) -> None:
        figures, turn = results[number], number
        # A closed loop: a client sends its next request when the last one has ended, so that the
        # load adapts to the server's speed.
        while time.monotonic() < end:
            prompt = PROMPTS[turn % len(PROMPTS)]
            try:
                text = stream(url, options.key, body_of(prompt, options), figures)
                kind = "right" if text == expected[prompt] else "wrong"
            except Refused:
                kind = "refused"
            except (OSError, ValueError, http.client.HTTPException) as error:
                figures.errors[f"{type(error).__name__}: {error}"] += 1
                kind = "broken"
                # Against a server that is gone a loop without a pause would spin.
                time.sleep(0.1)
            figures.counts[kind] += 1
            turn += 1

    threads = [threading.Thread(target=run, args=(i,)) for i in range(options.clients)]
    for thread in threads:
        thread.start()
    while pid and time.monotonic() < end:
        if resident := memory_of(pid):
            total.memory.append(resident)
        time.sleep(min(0.5, options.seconds / 20))
    for thread in threads:
        thread.join()
    # After the join: requests that were in flight at the end still count, as does their time.
    for figures in results:
        total.add(figures)
    total.seconds = time.monotonic() - start
    return total


def body_of(prompt: str, options: argparse.Namespace) -> dict:
    """Returns a greedy streamed request."""
    body = {"prompt": prompt, "max_tokens": options.tokens, "temperature": 0, "stream": True}
    return body | ({"model": options.model} if options.model else {})


def memory_of(pid: int) -> int:
    """Returns the resident bytes of a process, 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def main() -> int:
    """Runs the load. Returns 1 if an answer was wrong or broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8012")
    parser.add_argument("--clients", type=int, default=8, help="that send requests at once")
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--rounds", type=int, default=1, help="loads of each server, alternating")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens per request")
    parser.add_argument("--pid", type=int, default=0, help="the server's process")
    parser.add_argument("--peer", default="", help="the URL of a server to compare with")
    parser.add_argument("--model", default="", help="the model's name in requests")
    parser.add_argument("--key", default="none", help="the API key")
    options = parser.parse_args()
    urls = [url for url in (options.url, options.peer) if url]
    expected: dict[str, dict[str, str]] = {url: {} for url in urls}
    for url in urls:
        for prompt in PROMPTS:
            body = body_of(prompt, options)
            # Alone and greedy: under load the same prompt must give the same text.
            expected[url][prompt] = stream(url, options.key, body, Figures())
    totals = {url: Figures() for url in urls}
    for _ in range(options.rounds):
        for url in urls:
            pid = options.pid if url == options.url else 0
            totals[url].add(load(url, options, expected[url], pid))
    for url in urls:
        print(f"{url}: {options.clients} clients, {totals[url].seconds:.0f} s")
        print("\n".join(totals[url].lines()), flush=True)
    if options.peer:
        _compare(totals, expected, options)
    # Refusals are no failure: a full queue is right to refuse.
    counts = totals[options.url].counts
    return int(bool(counts["wrong"] or counts["broken"]))


def _compare(
    totals: dict[str, Figures], expected: dict[str, dict[str, str]], options: argparse.Namespace
) -> None:
    """Prints the ratios of the server to its peer, and how many texts are equal."""
    server, peer = totals[options.url], totals[options.peer]
    print(f"ratios to the peer: requests/s {server.rate / peer.rate if peer.rate else 0:.2f}")
    for name, of_server, of_peer in (
        ("first token", server.first, peer.first),
        ("between events", server.between, peer.between),
    ):
        ratios = []
        for p in PERCENTILES:
            ratios.append(f"p{p} {percentile(of_server, p) / percentile(of_peer, p):.2f}")
        print(f"  {name}: {', '.join(ratios)}")
    texts = expected[options.url], expected[options.peer]
    # Only a note: other kernels round differently, and greedy texts may part at a near-tie.
    equal = sum(texts[0][prompt] == texts[1][prompt] for prompt in PROMPTS)
    print(f"  equal greedy texts: {equal} of {len(PROMPTS)}")


if __name__ == "__main__":
    raise SystemExit(main())
