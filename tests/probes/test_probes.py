"""Infilling of held-out lines, and all probes asked of a tiny untrained model with a real tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import DOCUMENTS, NEW_TOKENS, SEQ_LEN, ask

from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.config import ProbesConfig
from codellama_jax.data.infilling import infill_ids
from codellama_jax.models.llama.model import Llama
from codellama_jax.probes import infilling
from codellama_jax.probes.infilling import (
    held_out_examples,
    infilling_by_format,
    middle_loss,
    single_lines,
)


def lines(
    run: Run, count: int = 20, seed: int = 0, texts: list[str] = DOCUMENTS
) -> list[infilling.Example]:
    return held_out_examples(single_lines, run.tokenizer, texts, count, SEQ_LEN, NEW_TOKENS, seed)


def test_examples_are_inner_lines_of_documents_that_fit(run):
    examples = lines(run)
    assert len(examples) == 20 == len(set(examples))
    for prefix, middle, suffix in examples:
        assert prefix + middle + suffix in DOCUMENTS
        assert (
            prefix.endswith("\n")
            and suffix.startswith("\n")
            and middle.strip()
            and "\n" not in middle
        )
        assert (
            max(
                len(infill_ids(run.tokenizer, prefix, middle, suffix, spm)) for spm in (False, True)
            )
            <= SEQ_LEN + 1
        )
        assert len(run.tokenizer.encode(middle, leading_space=False)) <= NEW_TOKENS


def test_examples_hang_on_the_seed_alone(run):
    assert lines(run) == lines(run)
    assert lines(run)[:5] == lines(run, count=5)
    assert lines(run) != lines(run, seed=1)


def test_few_documents_give_several_lines_and_at_most_what_they_hold(run):
    text = "def f(x):\n    y = x\n\n    z = y\n    return z\n\nlast"
    examples = lines(run, texts=[text, "one line", "two\nlines"])
    assert sorted(e.middle for e in examples) == ["    return z", "    y = x", "    z = y"]
    assert lines(run, texts=[]) == []


@pytest.mark.parametrize(
    ("written", "exact"),
    [("{}", 1), ("{}  ", 1), ("{}\nmore", 1), ("{} # x", 0), (" {}", 0), ("\n{}", 0), ("", 0)],
)
def test_exact_means_the_same_line_but_for_trailing_spaces(run, monkeypatch, written, exact):
    """Scores texts that no model wrote."""
    examples = lines(run, 5)
    middles = {(e.prefix, e.suffix): e.middle for e in examples}
    monkeypatch.setattr(infilling, "CACHED_TOKENS", 3 * SEQ_LEN)  # several batches
    monkeypatch.setattr(
        infilling,
        "infill",
        lambda _, pairs, *__, **___: [written.format(middles[pair]) for pair in pairs],
    )
    monkeypatch.setattr(infilling, "middle_loss", lambda *_: 0.0)
    found = infilling_by_format(run, examples, NEW_TOKENS, samples=2)
    assert list(found) == ["PSM", "SPM"]
    for measures in found.values():
        assert (
            measures["exact"] == exact
            and measures["examples"] == 5
            and len(measures["samples"]) == 2
        )


@pytest.mark.parametrize("spm", [False, True])
def test_loss_is_that_of_the_true_middle_after_its_prompt(run, spm):
    examples = lines(run, 3)
    tokenizer, total, count = run.tokenizer, 0.0, 0
    logits = jax.jit(
        lambda ids: Llama(run.model).apply(
            {"params": run.params}, ids[None], jnp.arange(SEQ_LEN)[None]
        )[0]
    )
    for prefix, middle, suffix in examples:
        ids = infill_ids(tokenizer, prefix, middle, suffix, spm)
        middle_ids = tokenizer.encode(
            middle, leading_space=False
        )  # a newline before it, which no piece goes across
        last = len(ids) - 1
        assert ids[last] == tokenizer.eot_id and ids[last - len(middle_ids) : last] == middle_ids
        log_p = jax.nn.log_softmax(logits(jnp.array((ids + [0] * SEQ_LEN)[:SEQ_LEN])))
        total -= sum(float(log_p[i - 1, ids[i]]) for i in range(last - len(middle_ids), last))
        count += len(middle_ids)
    assert middle_loss(run, examples, spm) == pytest.approx(total / count, rel=1e-4)


def test_answers_everything_that_is_asked(run):
    asked = ProbesConfig(
        (16, 64),
        2,
        3,
        bigram=True,
        completions=("def mean(xs):\n",),
        infills=2,
        max_new_tokens=NEW_TOKENS,
    )
    lines_said: list[str] = []
    found = ask(run, asked, say=lines_said.append)
    assert set(found) == {"perplexity", "infilling", "infills", "completions", "bigram"}
    assert lines_said == [
        "perplexity by context length",
        "infilling of held-out lines",
        "completions",
        "bigram model",
    ]
    assert set(found["perplexity"]) == {"16", "64"}
    assert {name: m["examples"] for name, m in found["infilling"].items()} == {"PSM": 3, "SPM": 3}
    assert [e["middle"] for e in found["infills"]] == [e.middle for e in lines(run, 2)]
    assert found["completions"][0]["prompt"] == "def mean(xs):\n"
    assert 0 < found["bigram"]["loss"] < np.log(run.model.vocab_size)


def test_answers_nothing_unasked(run):
    assert ask(run, ProbesConfig()) == {}


def test_says_why_a_part_could_not_be_asked(run):
    asked = ProbesConfig((16, 100_000), infilling_examples=3, infills=2)
    plain = dataclasses.replace(
        run, model=dataclasses.replace(run.model, vocab_size=run.tokenizer.pieces)
    )
    assert "100,000 tokens" in ask(plain, asked)["perplexity"]["note"]
    assert "no infilling sentinels" in ask(plain, asked)["infilling"]["note"]
    assert "fits 256 tokens" in ask(run, asked, documents=["one line"])["infills"]["note"]
