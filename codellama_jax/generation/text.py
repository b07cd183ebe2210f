"""From prompts to text: stop strings, streaming, and completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codellama_jax.generation.sampler import Sampling, generate
from codellama_jax.training.checkpoint import Run

Decode = Callable[[int, list[int]], str]  # (row, new ids) -> text
INCOMPLETE = "\ufffd"  # what the bytes of an unfinished character decode to


def until(text: str, stop_strings: Sequence[str]) -> str:
    """Cuts a text before the first stop string."""
    ends = [text.find(stop) for stop in stop_strings if stop in text]
    return text[: min(ends)] if ends else text


class Stream:
    """Hands out a growing text piece by piece, holding back what may still change: half a character, half a stop string."""

    def __init__(self, write: Callable[[str], None], stop_strings: Sequence[str]):
        self.write, self.stop_strings, self.written = write, stop_strings, 0

    def update(self, text: str) -> None:
        whole = until(text, self.stop_strings)
        if whole == text:
            whole = whole.rstrip(INCOMPLETE)
            begins = [n for stop in self.stop_strings for n in range(1, len(stop)) if whole.endswith(stop[:n])]
            whole = whole[: len(whole) - max(begins, default=0)]
        self.write(whole[self.written :])
        self.written = max(self.written, len(whole))

    def finish(self, text: str) -> None:
        self.write(text[self.written :])
        self.written = len(text)


def generate_text(
    run: Run,
    prompts: Sequence[Sequence[int]],
    decode: Decode,
    sampling: Sampling,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    stream: Callable[[str], None] | None,
) -> list[str]:
    """Generates from ids and returns texts, cut at stop strings. `stream` gets the pieces of the first prompt's text as they come."""
    out = Stream(stream, stop_strings) if stream else None

    def show(row: int, ids: list[int]) -> None:
        if row == 0 and out:
            out.update(decode(row, ids))

    stopped = (lambda row, ids: any(s in decode(row, ids) for s in stop_strings)) if stop_strings else None
    on_tokens = show if out else None
    vocab = min(run.model.vocab_size, run.tokenizer.vocab_size)
    rows = generate(run.model, run.params, prompts, sampling, stop_ids, vocab=vocab, stop=stopped, on_tokens=on_tokens)
    texts = [until(decode(row, ids), stop_strings) for row, ids in enumerate(rows)]
    if out:
        out.finish(texts[0])
    return texts


def complete(
    run: Run, prompts: Sequence[str], sampling: Sampling, stop_strings: Sequence[str] = (), stream: Callable[[str], None] | None = None
) -> list[str]:
    """Returns what follows each prompt, up to EOS or a stop string. Prompts are taken as they are, trailing white space included."""
    encoded = [[run.tokenizer.bos_id, *run.tokenizer.encode(prompt)] for prompt in prompts]
    decode = continuation(run, prompts)
    return generate_text(run, encoded, decode, sampling, [run.tokenizer.eos_id], stop_strings, stream)


def continuation(run: Run, prompts: Sequence[str]) -> Decode:
    """Returns the decoding of ids that go on from prompts encoded with their leading space."""
    encoded = [run.tokenizer.encode(prompt) for prompt in prompts]
    return lambda row, ids: run.tokenizer.decode([*encoded[row], *ids])[len(prompts[row]) :]
