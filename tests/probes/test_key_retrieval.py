"""Keys are scored as hidden digits, whatever numbers a model prefers."""

import dataclasses

import numpy as np
import pytest
from tiny_model import ask, subject

from codellama_jax.benchmarks.suites import key_retrieval
from codellama_jax.errors import UserError
from codellama_jax.probes import KeyRetrieval
from codellama_jax.probes import key_retrieval as key_probe
from codellama_jax.probes.key_retrieval import other_key


def test_another_key_differs_in_both_digits():
    for key in range(10, 100):
        assert 10 <= other_key(key) <= 99 and all(
            a != b for a, b in zip(str(key), str(other_key(key)))
        )


def hidden(model, ids: list[int]) -> str:
    return model.tokenizer.decode(ids).split('at the end."\n    return ')[1][:2]


@pytest.mark.parametrize(
    ("looks", "counts", "retrieved", "gain"),
    [(True, False, 1.0, 12.0), (False, False, 0.0, 0.0), (False, True, 0.0, 0.0)],
)
def test_keys_are_found_by_a_model_that_looks_at_them(
    model, monkeypatch, looks, counts, retrieved, gain
):
    """A model that prefers EOS and sevens everywhere.

    With `looks` it also copies the hidden key, by 6 nats per digit; with `counts` it continues to
    count from the last digit.
    """
    digits = key_probe.digit_ids(model.tokenizer)

    def logits(model, prompts, count):
        found_BMV = np.zeros((len(prompts), count, model.config.vocab_size), np.float32)
        found_BMV[:, 1:, digits[7]] = 5
        found_BMV[:, :, model.tokenizer.eos_id] = 5.5
        for row, ids in enumerate(prompts):
            for place, digit in enumerate(hidden(model, ids)):
                found_BMV[row, 2 - place, digits[int(digit)]] += 6 * looks
            found_BMV[row, 1, digits[(digits.index(ids[-2]) + 1) % 10]] += 3 * counts
        return found_BMV

    monkeypatch.setattr("codellama_jax.generation.scoring.last_logits", logits)
    by_length = KeyRetrieval((120, 160), (0.0, 0.5), examples=6).measure(subject(model))
    assert {length: list(by) for length, by in by_length.items()} == {
        "120": ["0", "0.5"],
        "160": ["0", "0.5"],
    }
    for measures in (m for by_position in by_length.values() for m in by_position.values()):
        assert measures["retrieved"] == [retrieved] * 6 and measures["gain"] == pytest.approx(
            [gain] * 3
        )


def test_keys_of_too_little_filler_are_refused(model):
    with pytest.raises(UserError, match="filler"):
        few = dataclasses.replace(subject(model), files=["x = 1\n"])
        KeyRetrieval((500,), (0.0,), examples=2).measure(few)
    assert [line for line, _ in key_retrieval.lines_of(["a\nb\n"], model.tokenizer)] == [
        "a\n",
        "b\n",
        "\n",
    ]


def test_keys_without_enough_filler_are_a_note(model):
    assert "filler" in ask(model, KeyRetrieval((100_000,)))["key_retrieval"]["note"]
