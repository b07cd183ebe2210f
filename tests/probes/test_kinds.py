"""Probes of the ablations: kinds of infilling, hidden keys, line ends, and the decay of attention."""

import math

import numpy as np
import pytest
from tiny_model import DOCUMENTS, NEW_TOKENS, SEQ_LEN, SOURCES, ask

from codellama_jax.benchmarks.suites import key_retrieval
from codellama_jax.config import ProbesConfig
from codellama_jax.errors import UserError
from codellama_jax.probes import infilling_kinds, line_ends
from codellama_jax.probes import key_retrieval as key_probe
from codellama_jax.probes.infilling import held_out_examples
from codellama_jax.probes.infilling_kinds import FORMATS, KINDS, infilling_by_kind, middle_losses
from codellama_jax.probes.key_retrieval import other_key, retrieval
from experiments.attention_decay import decay

LONGEST = 100  # tokens of a middle


def examples(run, kind: str, count: int = 30, seed: int = 0):
    return held_out_examples(
        KINDS[kind].cuts, run.tokenizer, DOCUMENTS, count, SEQ_LEN, LONGEST, seed
    )


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_rebuild_the_text_and_hang_on_the_seed(run, kind):
    found = examples(run, kind)
    assert found == examples(run, kind) != examples(run, kind, seed=1)
    assert len(found) > 10
    for e in found:
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


@pytest.mark.parametrize(
    ("written", "exact", "right"),
    [("{}", 1, 1), ("{}  ", 1, 1), ("{}x", 0, 1), ("\0{}", 0, 0), ("", 0, 0)],
)
def test_measures_of_texts_that_no_model_wrote(run, monkeypatch, written, exact, right):
    monkeypatch.setattr(
        infilling_kinds,
        "fill",
        lambda _, some, *__: [written.format(e.middle.rstrip()) for e in some],
    )
    monkeypatch.setattr(
        infilling_kinds, "middle_losses", lambda _, some, __: [2.0 * len(e.middle) for e in some]
    )
    found = infilling_by_kind(run, DOCUMENTS, tuple(KINDS), 5, SEQ_LEN, LONGEST, seed=0)
    assert {kind: list(by_format) for kind, by_format in found.items()} == {
        "single-line": ["PSM", "SPM"],
        "multi-line": ["PSM", "SPM"],
        "random-span": ["PSM", "SPM", "SPM, healed"],
    }
    for measures in (m for by_format in found.values() for m in by_format.values()):
        assert measures == {"exact": [exact] * 5, "right": [right] * 5, "loss": [2.0] * 5}


def test_healing_changes_no_loss_of_whole_lines(run):
    some = examples(run, "single-line", 8)
    np.testing.assert_allclose(
        middle_losses(run, some, FORMATS["SPM, healed"]),
        middle_losses(run, some, FORMATS["SPM"]),
        rtol=1e-4,
    )


def test_another_key_differs_in_both_digits():
    for key in range(10, 100):
        assert 10 <= other_key(key) <= 99 and all(
            a != b for a, b in zip(str(key), str(other_key(key)))
        )


def hidden(run, ids: list[int]) -> str:
    return run.tokenizer.decode(ids).split('at the end."\n    return ')[1][:2]


@pytest.mark.parametrize(
    ("looks", "counts", "retrieved", "gain"),
    [(True, False, 1.0, 12.0), (False, False, 0.0, 0.0), (False, True, 0.0, 0.0)],
)
def test_keys_are_found_by_a_model_that_looks_at_them(
    run, monkeypatch, looks, counts, retrieved, gain
):
    """One that likes to end and sevens wherever it is; one that also copies the hidden key, 6 nats a digit; one that counts on."""
    digits = key_probe.digit_ids(run.tokenizer)

    def logits(run, prompts, count):
        found_BMV = np.zeros((len(prompts), count, run.model.vocab_size), np.float32)
        found_BMV[:, 1:, digits[7]] = 5
        found_BMV[:, :, run.tokenizer.eos_id] = 5.5
        for row, ids in enumerate(prompts):
            for place, digit in enumerate(hidden(run, ids)):
                found_BMV[row, 2 - place, digits[int(digit)]] += 6 * looks
            found_BMV[row, 1, digits[(digits.index(ids[-2]) + 1) % 10]] += 3 * counts
        return found_BMV

    monkeypatch.setattr(key_probe, "last_logits", logits)
    by_length = retrieval(run, SOURCES, (120, 160), (0.0, 0.5), examples=6)
    assert {length: list(by) for length, by in by_length.items()} == {
        "120": ["0", "0.5"],
        "160": ["0", "0.5"],
    }
    for measures in (m for by_position in by_length.values() for m in by_position.values()):
        assert measures["retrieved"] == [retrieved] * 6 and measures["gain"] == pytest.approx(
            [gain] * 3
        )


def test_keys_of_too_little_filler_are_refused(run):
    with pytest.raises(UserError, match="filler"):
        retrieval(run, ["x = 1\n"], (500,), (0.0,), examples=2)
    assert [line for line, _ in key_retrieval.lines_of(["a\nb\n"], run.tokenizer)] == [
        "a\n",
        "b\n",
        "\n",
    ]


def test_line_ends_are_the_last_tokens_of_held_out_lines(run):
    tokenizer = run.tokenizer
    found = line_ends.line_ends(tokenizer, DOCUMENTS, 20, SEQ_LEN, seed=0)
    assert (
        found == line_ends.line_ends(tokenizer, DOCUMENTS, 20, SEQ_LEN, seed=0) and len(found) == 20
    )
    for prompt, end in found:
        text = tokenizer.decode(prompt)
        document = next(d for d in DOCUMENTS if d.startswith(text))
        line = document[len(text) :].split("\n")[0]
        assert line.rstrip() == end
        assert len(tokenizer.encode(line, leading_space=False)) == line_ends.HELD_BACK


def test_samples_pass_where_they_end_the_line(run, monkeypatch):
    """A sampler that ends every second line of a task right."""
    tasks = line_ends.line_ends(run.tokenizer, DOCUMENTS, 6, SEQ_LEN, seed=0)
    ends = {tuple(task.prompt): task.end for task in tasks}
    seen: list[int] = []

    def write(config, params, prompts, sampling, stop_ids, vocab, numbers):
        seen.extend(numbers)
        texts = [ends[tuple(p)] + "x" * (n % 2) for p, n in zip(prompts, numbers)]
        return [run.tokenizer.encode(text, leading_space=False) for text in texts]

    monkeypatch.setattr(line_ends, "generate", write)
    monkeypatch.setattr(line_ends, "ROWS", 8)
    found = line_ends.pass_by_temperature(run, DOCUMENTS, (0.5,), 6, 20, SEQ_LEN, seed=0)["0.5"]
    assert (
        found["passed"] == [10] * 6 and found["samples"] == 20 and sorted(seen) == list(range(120))
    )
    assert (
        found["pass@1"] == 0.5
        and found["pass@10"] == pytest.approx(1 - 1 / math.comb(20, 10))
        and "pass@100" not in found
    )


@pytest.mark.parametrize(("theta", "scaling"), [(1e4, 1.0), (1e4, 4.0), (1e6, 1.0)])
def test_decay_is_the_product_of_rotated_vectors(theta, scaling):
    """Of random vectors with themselves, rotated by the model's own angles: the mean over many is the sum of cosines."""
    from codellama_jax.models.layers import rope_angles

    distances, dim = np.array([0, 1, 3, 17, 200]), 64
    cos, _ = rope_angles(distances[None], dim, theta, scaling)
    np.testing.assert_allclose(
        decay(distances, theta, scaling, dim), np.asarray(cos)[0].mean(-1), atol=1e-5
    )
    direct = [
        sum(math.cos(n / scaling * theta ** (-2 * i / dim)) for i in range(dim // 2)) / (dim // 2)
        for n in distances
    ]
    np.testing.assert_allclose(decay(distances, theta, scaling, dim), direct, atol=1e-12)


def test_attention_decays_less_with_a_larger_base_and_with_interpolation():
    far = np.arange(1000, 16_000, 500)
    assert (decay(far, 1e6) > decay(far, 1e4)).all() and (
        decay(far, 1e4, 4.0) > decay(far, 1e4)
    ).all()
    assert decay(np.zeros(1), 1e4)[0] == 1


def test_all_are_asked_of_a_real_model(run):
    asked = ProbesConfig(
        infilling_kinds=("random-span",), kind_examples=2, key_lengths=(128,), key_examples=2, temperatures=(0.8,),
        line_ends=2, line_end_samples=10, max_new_tokens=NEW_TOKENS,
    )  # fmt: skip
    found = ask(run, asked)
    assert set(found) == {"infilling_kinds", "key_retrieval", "line_ends"}
    losses = [m["loss"] for by in found["infilling_kinds"].values() for m in by.values()]
    assert all(len(some) == 2 and min(some) > 0 for some in losses)
    assert set(found["key_retrieval"]["128"]) == {"0", "0.2", "0.4"}
    assert (
        found["line_ends"]["0.8"]["samples"] == 10
        and max(found["line_ends"]["0.8"]["passed"]) <= 10
    )


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="infilling_kinds is 'word': it must be one of single-line"):
        ProbesConfig(infilling_kinds=("word",))


def test_keys_without_enough_filler_are_a_note(run):
    found = ask(run, ProbesConfig(key_lengths=(100_000,), max_new_tokens=NEW_TOKENS))
    assert "filler" in found["key_retrieval"]["note"]
