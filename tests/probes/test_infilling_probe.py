"""Measures of infilled middles, and the loss of the true ones."""

from types import SimpleNamespace

import byte_bpe_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import DOCUMENTS, NEW_TOKENS, SEQ_LEN, subject

from codellama_jax.data.infilling import infill_ids
from codellama_jax.errors import UserError
from codellama_jax.models.llama.model import Llama
from codellama_jax.probes import Infilling, InfillingKinds, infilling
from codellama_jax.probes.held_out import held_out_examples, lines_to_fill
from codellama_jax.probes.infilling import (
    FORMATS,
    KINDS,
    middle_losses,
    token_choices,
    token_losses,
)

LONGEST = 100  # tokens of a middle


@pytest.mark.parametrize(
    ("written", "exact"),
    [("{}", 1), ("{}  ", 1), ("{}\nmore", 1), ("{} # x", 0), (" {}", 0), ("\n{}", 0), ("", 0)],
)
def test_exact_means_the_same_line_but_for_trailing_spaces(model, monkeypatch, written, exact):
    """Scores texts that no model wrote."""
    examples = lines_to_fill(subject(model), 5, NEW_TOKENS)
    middles = {(e.prefix, e.suffix): e.middle for e in examples}
    monkeypatch.setattr(infilling, "CACHED_TOKENS", 3 * SEQ_LEN)  # several batches
    monkeypatch.setattr(
        "codellama_jax.generation.infill.infill",
        lambda _, pairs, *__, **___: [written.format(middles[pair]) for pair in pairs],
    )
    monkeypatch.setattr(infilling, "token_losses", lambda *_: [np.zeros(1)])
    monkeypatch.setattr(infilling, "SAMPLES", 2)
    answers = Infilling(5, NEW_TOKENS).measure(subject(model))
    assert list(answers) == ["PSM", "SPM"]
    for measures in answers.values():
        assert (
            measures["exact"] == exact
            and measures["examples"] == 5
            and len(measures["samples"]) == 2
        )


@pytest.mark.parametrize("spm", [False, True])
def test_loss_is_that_of_the_true_middle_after_its_prompt(model, spm):
    examples = lines_to_fill(subject(model), 3, NEW_TOKENS)
    tokenizer, total, count = model.tokenizer, 0.0, 0
    logits = jax.jit(
        lambda ids: Llama(model.config).apply(
            {"params": model.params}, ids[None], jnp.arange(SEQ_LEN)[None]
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
    losses = np.concatenate(token_losses(model, examples, spm))
    assert losses.mean() == pytest.approx(total / count, rel=1e-4) and len(losses) == count


@pytest.mark.parametrize(
    ("written", "exact", "right"),
    [("{}", 1, 1), ("{}  ", 1, 1), ("{}x", 0, 1), ("\0{}", 0, 0), ("", 0, 0)],
)
def test_measures_of_texts_that_no_model_wrote(model, monkeypatch, written, exact, right):
    monkeypatch.setattr(
        infilling,
        "fill",
        lambda _, chosen, *__: [written.format(e.middle.rstrip()) for e in chosen],
    )
    monkeypatch.setattr(
        infilling, "middle_losses", lambda _, chosen, __: [2.0 * len(e.middle) for e in chosen]
    )
    monkeypatch.setattr(
        infilling, "token_choices", lambda _, chosen, __: [np.array([True, False])] * len(chosen)
    )
    answers = InfillingKinds(tuple(KINDS), 5, LONGEST).measure(subject(model))
    assert {kind: list(by_format) for kind, by_format in answers.items()} == {
        "single-line": ["PSM", "SPM"],
        "multi-line": ["PSM", "SPM"],
        "random-span": ["PSM", "SPM", "SPM, healed"],
    }
    for by_format in answers.values():
        for name, measures in by_format.items():
            assert measures == {
                "exact": [exact] * 5,
                "right": [right] * 5,
                "loss": [2.0] * 5,
                **({} if "healed" in name else {"first": [1.0] * 5, "tokens": [0.5] * 5}),
            }


def test_the_prefix_of_a_line_may_end_inside_a_token_of_byte_level_pieces_only(model):
    assert not infilling._joins_lines(model.tokenizer)
    assert infilling._joins_lines(byte_bpe_cases.trained("gpt2"))


@pytest.mark.parametrize("spm", [False, True])
def test_choices_are_those_of_the_logits(model, spm):
    """Of every token of the middle, in batches of one document as well."""
    examples = lines_to_fill(subject(model), 3, NEW_TOKENS)
    apply = jax.jit(
        lambda ids: Llama(model.config).apply(
            {"params": model.params}, ids[None], jnp.arange(SEQ_LEN)[None]
        )[0]
    )
    for example, chosen in zip(examples, token_choices(model, examples, spm), strict=True):
        ids = infill_ids(model.tokenizer, *example, spm)[:-1]  # without EOT
        likely = np.asarray(apply(jnp.array((ids + [0] * SEQ_LEN)[:SEQ_LEN])).argmax(-1))
        count = len(model.tokenizer.encode(example.middle, leading_space=False))
        assert len(chosen) == count
        first = len(ids) - count
        np.testing.assert_array_equal(chosen, likely[first - 1 : len(ids) - 1] == ids[first:])


def test_healing_changes_no_loss_of_complete_lines(model):
    limits = (8, SEQ_LEN, LONGEST, 0)
    chosen = held_out_examples(KINDS["single-line"].splits, model.tokenizer, DOCUMENTS, *limits)
    np.testing.assert_allclose(
        middle_losses(model, chosen, FORMATS["SPM, healed"]),
        middle_losses(model, chosen, FORMATS["SPM"]),
        rtol=1e-4,
    )


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="kinds is 'word': it must be one of single-line"):
        InfillingKinds(("word",))


def test_the_report_has_a_row_per_kind_format_and_stage():
    """A format without choices of tokens, as of an older run, has empty cells."""
    rows: list = []
    page = SimpleNamespace(table=lambda _, cells: rows.extend(cells), note=lambda _: None)
    of_stage = {
        "random-span": {
            "PSM": {"exact": [0.0, 1.0], "right": [0.5], "first": [1.0], "tokens": [0.25]}
            | {"loss": [1.0, 2.0]},
            "SPM, healed": {"exact": [1.0], "right": [1.0], "loss": [0.5]},
        }
    }
    answers = [(SimpleNamespace(name=name), of_stage) for name in ("general", "infill")]
    InfillingKinds(("random-span",)).show(page, answers)
    assert [row[:3] for row in rows] == [
        ("random-span", order, stage)
        for order in ("PSM", "SPM, healed")
        for stage in ("general", "infill")
    ]
    assert rows[0][3:] == ("50.0%", "50.0%", "100.0%", "25.0%", "1.500")
    assert rows[-1][3:] == ("100.0%", "100.0%", "", "", "0.500")
