"""Token healing of a random model, and of one that is sure of a word."""

import dataclasses

import byte_bpe_cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation import healing
from codellama_jax.generation.healing import Pieces, heal
from codellama_jax.generation.infill import infill
from codellama_jax.generation.scoring import document_losses, last_logits
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.tokenizers import sentencepiece as tokenizers

GREEDY = Sampling(max_new_tokens=6)
TEXT = "for number, name in enumerate(names):\n    print(number, name)\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> TrainedModel:
    texts = [TEXT + f"total{i} = enumerate(é{i})\n" for i in range(300)]
    tokenizer = tokenizers.train(texts, 340, tmp_path_factory.mktemp("tokenizers"))
    config = dataclasses.replace(toy.MODEL, vocab_size=tokenizer.vocab_size)
    zeros, rng = jnp.zeros((1, 4), jnp.int32), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(Llama(config).init, jax.random.key(0), zeros, zeros)["params"])
    return TrainedModel(
        config,
        jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32), shapes),
        tokenizer,
        "toy",
    )


def prompt(model: TrainedModel, text: str) -> list[int]:
    return [model.tokenizer.bos_id, *model.tokenizer.encode(text)]


@given(text=st.text(alphabet=" adefnumrtle(", min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_extending_pieces_are_all_that_begin_so_and_are_longer(model, text):
    pieces = Pieces(model.tokenizer)
    expected = {i for i in model.tokenizer.text_ids if pieces.texts[i].startswith(text)}
    assert set(pieces.extending(text).tolist()) == {i for i in expected if pieces.texts[i] != text}


def test_what_is_cut_off_is_what_comes_back(model):
    """Wherever a prompt ends, the prompt that is left and the characters removed are its text."""
    cuts = [TEXT[:i] for i in range(1, len(TEXT))]
    found = heal(model, [prompt(model, text) for text in cuts])
    assert [
        model.tokenizer.decode(h.ids) + (h.removed if h.ids[1:] else h.removed.removeprefix(" "))
        for h in found
    ] == cuts
    assert any(h.removed for h in found)
    for h in found:
        assert (h.first is None) == (h.removed == "") and h.log_odds >= 0


def test_odds_are_those_of_each_continuation_read_by_itself(model):
    ids = prompt(model, "for number, name in enu")
    pieces, odds, removed = Pieces(model.tokenizer), [0.0], ""
    before = np.cumsum([0.0, *document_losses(model, [ids])[0]])  # nats of all ids up to each
    for m in range(1, len(ids)):
        removed = pieces.texts[ids[-m]] + removed
        longer = pieces.extending(removed).tolist()
        losses = (
            [losses[-1] for losses in document_losses(model, [[*ids[:-m], i] for i in longer])]
            if longer
            else []
        )
        odds += [before[-1] - before[-1 - m] - loss for loss in losses]
    assert heal(model, [ids])[0].log_odds == pytest.approx(np.logaddexp.reduce(odds), abs=1e-4)


def test_backs_up_to_the_word_that_the_model_is_sure_of(model, monkeypatch):
    word = model.tokenizer.encode(" enumerate", leading_space=False)
    assert len(word) == 1
    before, ids = prompt(model, "name in"), prompt(model, "name in enu")
    assert ids[: len(before)] == before != ids

    def sure(model, prompts, count):
        logits_BMV = np.zeros((len(prompts), count, model.config.vocab_size), np.float32)
        logits_BMV[:, len(ids) - len(before), word[0]] = 20
        return logits_BMV

    monkeypatch.setattr(healing, "last_logits", sure)
    (healed,) = heal(model, [ids])
    assert healed.ids == before and healed.removed == " enu" and word[0] in healed.first


@pytest.mark.parametrize("kind", ["codex", "starcoder"])
def test_no_sentinel_is_removed(kind):
    """StarCoder's are among the pieces, and a model finds each of them unlikely."""
    tokenizer = byte_bpe_cases.trained(kind)
    pieces = Pieces(tokenizer)
    ids = prompt_ids(tokenizer, "r", "x", spm=True)
    assert ids[-2] == tokenizer.mid_id and len(pieces.extending("r"))
    logits_MV = np.zeros((healing.MAX_REMOVED + 1, tokenizer.vocab_size), np.float32)
    assert healing._most_likely(pieces, ids, logits_MV).ids in (ids, ids[:-1])


def test_at_a_border_that_no_piece_crosses_healing_changes_nothing(model):
    pairs = [(TEXT, "\nnames"), (TEXT + "    print(\n", ")"), ("", "x")]
    assert infill(model, pairs, GREEDY, spm=True, healing=True) == infill(
        model, pairs, GREEDY, spm=True
    )
    assert [
        h.log_odds for h in heal(model, [prompt(model, prefix) for prefix, _ in pairs[:2]])
    ] == [
        0.0,
        0.0,
    ]


def test_the_first_token_goes_on_with_what_was_removed(model):
    prefixes = [TEXT[:i] for i in range(14, 34)]
    healed = heal(
        model, [prompt_ids(model.tokenizer, prefix, "\n", spm=True) for prefix in prefixes]
    )
    texts = infill(
        model,
        [(prefix, "\n") for prefix in prefixes],
        Sampling(max_new_tokens=1),
        spm=True,
        healing=True,
    )
    pieces = Pieces(model.tokenizer).texts
    assert any(h.removed for h in healed)
    for text, h in zip(texts, healed, strict=True):
        assert not h.removed or h.removed + text in [pieces[i] for i in h.first]


def test_last_logits_are_those_of_each_prompt_alone(model):
    prompts = [prompt(model, TEXT[:n]) for n in (3, 30, 11)]
    together = last_logits(model, prompts, 3)
    for logits_MV, ids in zip(together, prompts, strict=True):
        for m in range(min(3, len(ids) - 1)):
            np.testing.assert_allclose(
                logits_MV[m], last_logits(model, [ids[: len(ids) - m]], 1)[0, 0], atol=1e-4
            )
