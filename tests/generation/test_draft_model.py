"""A draft model changes no ids, and agrees with the model that checks it where it is as good."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from characters import Characters
from flax import linen as nn
from toy import MODEL

from codellama_jax.errors import UserError
from codellama_jax.generation.device import Device
from codellama_jax.generation.draft_model import DraftModel, with_drafts
from codellama_jax.generation.drafts import PromptLookup
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request, Running
from codellama_jax.generation.settings import QuantizationOptions, Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.trained import TrainedModel

SLOTS, LENGTH = 4, 3
# Another family, and shorter than the longest text.
SHORT = GPTConfig(
    64, 32, 1, 4, 1, 8, 64, compute_dtype="float32", remat="none", n_positions=40, init_std=0.1
)


def model_of(config, seed: int = 0) -> TrainedModel:
    params = jax.jit(lambda: nn.unbox(boxed_params(config, jax.random.key(seed))))()
    return TrainedModel(config, jax.tree.map(lambda a: 4 * a, params), Characters(), "toy")


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return model_of(MODEL)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Greedy and sampled requests, some of one prompt, with stop ids; more than there are slots."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 64, length).tolist() for length in (1, 20, 34)]
    samplings = [Sampling(1.0, 7, 0.9, 18, seed=6), Sampling(0.0, 0, 1.0, 15)]
    return [
        Request(prompts[i % 3], samplings[i % 2], [9] if i % 4 == 0 else [], number=i)
        for i in range(9)
    ]


@pytest.fixture(scope="module")
def alone(model, requests) -> list[list[int]]:
    engine = Engine(model, SLOTS)
    return [engine.run([request])[0] for request in requests]


def drawn_with(model, drafter, requests) -> tuple[list[list[int]], int]:
    """Returns the ids drawn with a drafter, and how many steps the engine took."""
    engine = Engine(dataclasses.replace(model, drafter=drafter), SLOTS)
    return engine.run(requests), engine.counts["steps"]


def test_a_model_that_drafts_for_itself_is_accepted(model, requests, alone):
    drafter = DraftModel(model, LENGTH)
    ids, steps = drawn_with(model, drafter, requests)
    assert ids == alone
    # Sampled drafts too, since both draw with the same PRNG keys.
    assert drafter.accepted > 0.9 * drafter.drafted > 0
    engine = Engine(model, SLOTS)
    engine.run(requests)
    assert steps < 0.6 * engine.counts["steps"]
    # The draft's cache is used again: a draft reads few tokens beside those it was given before.
    counts = drafter._engine.counts
    assert counts["prompt tokens reused"] > 2 * counts["prompt tokens read"]


@pytest.mark.parametrize("config", [MODEL, SHORT], ids=["llama", "short gpt"])
def test_any_draft_model_changes_no_ids(config, model, requests, alone):
    drafter = DraftModel(model_of(config, seed=1), LENGTH)
    ids, _ = drawn_with(model, drafter, requests)
    assert ids == alone
    assert 0 <= drafter.accepted < 0.5 * drafter.drafted
    assert "tokens accepted" in drafter.report()


def test_a_text_too_long_for_the_draft_model_has_no_draft(model):
    drafter = DraftModel(model_of(SHORT), LENGTH)
    request = Request([5] * 40, Sampling(max_new_tokens=6))
    ids, _ = drawn_with(model, drafter, [request])
    assert ids == Engine(model, SLOTS).run([request])
    assert drafter.report() == "drafts: none, since every text was too long for the draft model"


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_the_call_after_an_error_has_drafts(model, monkeypatch, error):
    drafter, sampling = DraftModel(model, LENGTH), Sampling(max_new_tokens=6)
    texts = [Running(n, Request([5] * length, sampling)) for n, length in enumerate((30, 500))]
    [expected] = drafter.drafts(texts[:1], 2)

    def fail(*args):
        raise error("no memory")

    with monkeypatch.context() as patches:
        patches.setattr(Device, "resize", fail)
        with pytest.raises(error):
            drafter.drafts(texts, 2)
    [again] = drafter.drafts(texts[:1], 2)
    assert again.tolist() == expected.tolist()


def with_fingerprint(model: TrainedModel, fingerprint: str) -> TrainedModel:
    tokenizer = SimpleNamespace(fingerprint=fingerprint, vocab_size=model.config.vocab_size)
    return dataclasses.replace(model, tokenizer=tokenizer)


def test_the_options_choose_the_drafter(model):
    model = with_fingerprint(model, "one")
    loaded = []

    def load(run: str) -> TrainedModel:
        loaded.append(run)
        return model

    assert with_drafts(model, QuantizationOptions(), load).drafter is None
    options = QuantizationOptions(speculate=2)
    assert isinstance(with_drafts(model, options, load).drafter, PromptLookup)
    assert not loaded
    options = QuantizationOptions(speculate=2, draft_model="small")
    drafter = with_drafts(model, options, load).drafter
    assert isinstance(drafter, DraftModel) and drafter.length == 2 and loaded == ["small"]


def test_a_draft_model_of_another_tokenizer_is_refused(model):
    options = QuantizationOptions(speculate=2, draft_model="small")
    model, other = with_fingerprint(model, "one"), with_fingerprint(model, "another")
    with pytest.raises(UserError, match="--draft-model small has another tokenizer than toy: pass"):
        with_drafts(model, options, lambda _: other)
