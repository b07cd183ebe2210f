"""Perplexity by context length against the model called on each document by itself."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from codellama_jax.benchmarks.suites import perplexity
from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.config import MeshConfig
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError
from codellama_jax.models.llama.model import Llama
from codellama_jax.sharding.mesh import make_mesh, on_mesh


class Characters:
    """A tokenizer of one id a character, as far as `plain_ids` needs one."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) % 60 for c in text]


LONGEST = 100


@pytest.fixture(scope="module")
def run() -> Run:
    """An untrained model, its weights large enough that context counts."""
    zeros, rng = jnp.zeros((1, 4), jnp.int32), np.random.default_rng(0)
    shapes = nn.unbox(
        jax.eval_shape(Llama(toy.MODEL).init, jax.random.key(0), zeros, zeros)["params"]
    )
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.5, a.shape), jnp.float32), shapes)
    return Run(toy.MODEL, params, Characters(), "toy")


@jax.jit
def log_probabilities(params: dict, tokens_BT: jax.Array) -> jax.Array:
    logits_BTV = Llama(toy.MODEL).apply({"params": params}, tokens_BT, jnp.arange(LONGEST)[None])
    return jax.nn.log_softmax(logits_BTV)


def alone(run: Run, ids: list[int]) -> np.ndarray:
    """The losses of one document, from whole logits; what follows it in the row is of no account to a causal model."""
    tokens_BT = np.zeros((1, LONGEST), np.int32)
    tokens_BT[0, : len(ids) - 1] = ids[:-1]
    return -np.asarray(log_probabilities(run.params, tokens_BT))[
        0, np.arange(len(ids) - 1), ids[1:]
    ]


def texts(*lengths: int) -> list[str]:
    """Random texts of which `plain_ids` makes length + 1 ids: that many predictions."""
    rng = np.random.default_rng(3)
    return ["".join(map(chr, rng.integers(65, 120, length - 1))) for length in lengths]


def test_losses_are_those_of_each_document_alone(run, monkeypatch):
    """Over several batches, and chunks of logits that do not divide the length."""
    monkeypatch.setattr(perplexity, "TOKENS", 64)
    monkeypatch.setattr("kernels.cross_entropy.xla.CHUNK", 7)
    perplexity._losses.clear_cache()
    documents = [plain_ids(run.tokenizer, text) for text in texts(5, 31, 17, 2, 24)]
    for losses, ids in zip(perplexity.document_losses(run, documents), documents, strict=True):
        np.testing.assert_allclose(losses, alone(run, ids), atol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 8, 1, 1), MeshConfig(2, 1, 2, 2)])
def test_a_mesh_changes_nothing(run, mesh):
    documents = [plain_ids(run.tokenizer, text) for text in texts(9, 15, 12)]
    with on_mesh(make_mesh(mesh)):
        sharded = perplexity.document_losses(run, documents)
    for losses, ids in zip(sharded, documents, strict=True):
        np.testing.assert_allclose(losses, alone(run, ids), atol=1e-5)


def test_every_length_reads_the_beginnings_of_the_same_documents(run):
    documents = texts(20, 64, 63, 100, 70, 80)
    found = perplexity.perplexity_by_length(run, documents, (16, 64, 4), rows=3)
    losses_RT = np.stack(
        [alone(run, plain_ids(run.tokenizer, documents[i])[:65]) for i in (1, 3, 4)]
    )
    assert list(found) == [4, 16, 64]
    for length, measures in found.items():
        assert measures["tokens"] == 3 * length and measures["documents"] == 3
        assert measures["perplexity"] == pytest.approx(
            np.exp(losses_RT[:, :length].mean()), rel=1e-5
        )
        assert measures["last_block"] == pytest.approx(
            np.exp(losses_RT[:, length - length // 4 : length].mean()), rel=1e-5
        )


def test_fewer_long_documents_than_asked_are_counted(run):
    found = perplexity.perplexity_by_length(run, texts(20, 40, 30), (8, 32), rows=8)
    assert found[32]["documents"] == 1 and found[8]["documents"] == 1


def test_names_the_longest_document_if_none_is_long_enough(run):
    with pytest.raises(UserError, match=r"1,024 tokens .* the longest has 40"):
        perplexity.perplexity_by_length(run, texts(20, 40, 30), (8, 1024), rows=8)


def test_stops_reading_when_it_has_enough(run):
    def endless():
        while True:
            yield from texts(40)

    assert len(perplexity.long_documents(run.tokenizer, endless(), 32, 5)) == 5


def test_a_diverged_model_has_no_perplexity():
    """exp() of its loss is no number."""
    with pytest.raises(UserError, match="the loss is 1e\\+03 nats per token"):
        perplexity._measures(np.full((2, 8), 1000.0))
    with pytest.raises(UserError, match="the model has diverged"):
        perplexity._measures(np.full((2, 8), np.nan))
    with pytest.raises(UserError, match="the loss is 2e\\+03 nats per token"):
        perplexity._measures(np.array([[1.0] * 6 + [2000.0] * 2]))
    assert perplexity._measures(np.full((2, 8), 100.0))["perplexity"] == np.exp(100.0)
