"""Middles of held-out documents: which are taken out, and that they depend on the seed alone."""

import pytest
from tiny_model import DOCUMENTS, NEW_TOKENS, SEQ_LEN

from codellama_jax.data.infilling import infill_ids
from codellama_jax.models.trained import TrainedModel
from codellama_jax.probes.held_out import Example, held_out_examples, single_lines
from codellama_jax.probes.infilling import KINDS

LONGEST = 100  # tokens of a middle


def lines(
    model: TrainedModel, count: int = 20, seed: int = 0, texts: list[str] = DOCUMENTS
) -> list[Example]:
    return held_out_examples(single_lines, model.tokenizer, texts, count, SEQ_LEN, NEW_TOKENS, seed)


def test_fewer_examples_are_the_first_ones_if_there_are_as_many_documents(model):
    """The docstring of the probe `infills` relies on it."""
    assert lines(model, 5) == lines(model, len(DOCUMENTS))[:5]
    assert lines(model, 5) != lines(model, 2 * len(DOCUMENTS))[:5]


def test_examples_are_inner_lines_of_documents_that_fit(model):
    examples = lines(model)
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
                len(infill_ids(model.tokenizer, prefix, middle, suffix, spm))
                for spm in (False, True)
            )
            <= SEQ_LEN + 1
        )
        assert len(model.tokenizer.encode(middle, leading_space=False)) <= NEW_TOKENS


def test_examples_depend_on_the_seed_alone(model):
    assert lines(model) == lines(model)
    assert lines(model)[:5] == lines(model, count=5)
    assert lines(model) != lines(model, seed=1)


def test_few_documents_give_several_lines_each(model):
    text = "def f(x):\n    y = x\n\n    z = y\n    return z\n\nlast"
    examples = lines(model, texts=[text, "one line", "two\nlines"])
    assert sorted(e.middle for e in examples) == ["    return z", "    y = x", "    z = y"]
    assert lines(model, texts=[]) == []


def examples(model, kind: str, count: int = 30, seed: int = 0):
    return held_out_examples(
        KINDS[kind].splits, model.tokenizer, DOCUMENTS, count, SEQ_LEN, LONGEST, seed
    )


@pytest.mark.parametrize("kind", KINDS)
def test_splits_rebuild_the_text_and_depend_on_the_seed(model, kind):
    splits = examples(model, kind)
    assert splits == examples(model, kind) != examples(model, kind, seed=1)
    assert len(splits) > 10
    for e in splits:
        assert (
            e.prefix + e.middle + e.suffix in DOCUMENTS
            and e.middle.strip()
            and e.prefix
            and e.suffix
        )
        if kind != "random-span":
            assert e.prefix.endswith("\n") and e.suffix.startswith("\n")
            lines = e.middle.split("\n")
            assert (
                (len(lines) == 1) == (kind == "single-line")
                and lines[0].strip()
                and lines[-1].strip()
            )
