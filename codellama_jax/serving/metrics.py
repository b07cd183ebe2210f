"""Counters of the server as Prometheus text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from codellama_jax.serving.worker import Worker

PREFIX = "codellama_jax_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Name, the worker's count, and the meaning.
COUNTERS = (
    ("prompt_tokens_total", "prompt_tokens", "Tokens of prompts."),
    ("prompt_tokens_reused_total", "prompt_tokens_reused", "Those that were read before."),
    ("tokens_predicted_total", "predicted_tokens", "New tokens."),
    ("refused_total", "refused", "Requests that found the queue full."),
    ("cancelled_total", "cancelled", "Sequences whose client left."),
    ("failed_total", "failed", "Sequences that failed in the engine, as for memory."),
)
SECONDS = (
    ("prompt_seconds_total", "prompt_microseconds", "Time of reading prompts, per sequence."),
    ("tokens_predicted_seconds_total", "predicted_microseconds", "Time of decoding, per sequence."),
)


def text(worker: Worker, requests: Counter[tuple[str, int]]) -> str:
    """Returns all metrics. `requests` counts answers by endpoint and HTTP status."""
    return "\n".join(_lines(worker, requests)) + "\n"


def _lines(worker: Worker, requests: Counter[tuple[str, int]]) -> Iterator[str]:
    for name, count, meaning in COUNTERS:
        yield from _metric(name, "counter", meaning, str(worker.counts[count]))
    for name, count, meaning in SECONDS:
        yield from _metric(name, "counter", meaning, f"{worker.counts[count] / 1e6:.6f}")
    # Models of several quantizations share the drafter.
    if worker.models and worker.models[0].drafter:
        drafter = worker.models[0].drafter
        tokens = {"drafted_total": drafter.drafted, "draft_accepted_total": drafter.accepted}
        for name, value in tokens.items():
            yield from _metric(name, "counter", "Tokens of the drafts of --speculate.", str(value))
    # Approximate: the worker changes the numbers while they are read.
    running = min(len(worker.running()), worker.all_slots)
    waiting = max(0, worker.unfinished - running)
    yield from _metric("requests_processing", "gauge", "Sequences in a slot.", str(running))
    yield from _metric("requests_deferred", "gauge", "Sequences that wait.", str(waiting))
    yield from _metric(
        "slots", "gauge", "Sequences that are decoded at once.", str(worker.all_slots)
    )
    yield f"# HELP {PREFIX}http_requests_total Answers by endpoint and status."
    yield f"# TYPE {PREFIX}http_requests_total counter"
    for (path, status), answers in sorted(requests.items()):
        yield f'{PREFIX}http_requests_total{{path="{path}",status="{status}"}} {answers}'


def _metric(name: str, kind: str, meaning: str, value: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {meaning}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    yield f"{PREFIX}{name} {value}"
