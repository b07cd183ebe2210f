"""Ends of held-out lines, and which samples of them pass."""

import math

import pytest
from tiny_model import DOCUMENTS, SEQ_LEN, subject

from codellama_jax.probes import line_ends


def test_line_ends_are_the_last_tokens_of_held_out_lines(model):
    tokenizer = model.tokenizer
    lines = line_ends.unfinished_lines(tokenizer, DOCUMENTS, 20, SEQ_LEN, seed=0)
    assert (
        lines == line_ends.unfinished_lines(tokenizer, DOCUMENTS, 20, SEQ_LEN, seed=0)
        and len(lines) == 20
    )
    for prompt, end in lines:
        text = tokenizer.decode(prompt)
        document = next(d for d in DOCUMENTS if d.startswith(text))
        line = document[len(text) :].split("\n")[0]
        assert line.rstrip() == end
        assert len(tokenizer.encode(line, leading_space=False)) == line_ends.HELD_BACK


def test_samples_pass_where_they_end_the_line(model, monkeypatch):
    """A sampler that ends every second line of a task right."""
    tasks = line_ends.unfinished_lines(model.tokenizer, DOCUMENTS, 6, SEQ_LEN, seed=0)
    ends = {tuple(task.prompt): task.end for task in tasks}
    seen: list[int] = []

    def write(model, prompts, sampling, stop_ids, stop, vocab, slots):
        seen.append(slots)
        texts = [ends[tuple(p)] + "x" * (n % 2) for n, p in enumerate(prompts)]
        return [model.tokenizer.encode(text, leading_space=False) for text in texts]

    monkeypatch.setattr("codellama_jax.generation.sampler.generate", write)
    monkeypatch.setattr(line_ends, "SLOTS", 8)
    answer = line_ends.LineEnds((0.5,), 6, 20).measure(subject(model))["0.5"]
    assert answer["passed"] == [10] * 6 and answer["samples"] == 20 and seen == [8]
    assert (
        answer["pass@1"] == 0.5
        and answer["pass@10"] == pytest.approx(1 - 1 / math.comb(20, 10))
        and "pass@100" not in answer
    )
