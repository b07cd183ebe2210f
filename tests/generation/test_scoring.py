"""Scores of batches against the model called on each document by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from characters import texts, untrained

from codellama_jax.config import MeshConfig
from codellama_jax.data.infilling import plain_ids
from codellama_jax.generation import scoring
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh, on_mesh

LONGEST = 100
MESHES = [MeshConfig(1, 8, 1, 1), MeshConfig(2, 1, 2, 2)]


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return untrained()


@jax.jit
def logits_of(params: dict, tokens_BT: jax.Array) -> jax.Array:
    return Llama(toy.MODEL).apply({"params": params}, tokens_BT, jnp.arange(LONGEST)[None])


def logits_alone(model: TrainedModel, ids: list[int]) -> np.ndarray:
    """The logits of one document; tokens after it do not matter to a causal model."""
    tokens_BT = np.zeros((1, LONGEST), np.int32)
    tokens_BT[0, : len(ids)] = ids
    return np.asarray(logits_of(model.params, tokens_BT))[0, : len(ids)]


def losses_alone(model: TrainedModel, ids: list[int]) -> np.ndarray:
    log_p_TV = jax.nn.log_softmax(logits_alone(model, ids[:-1]))
    return -np.asarray(log_p_TV)[np.arange(len(ids) - 1), ids[1:]]


def test_losses_are_those_of_each_document_alone(model, monkeypatch):
    """Over several batches, and chunks of logits that do not divide the length."""
    monkeypatch.setattr(scoring, "TOKENS", 64)
    monkeypatch.setattr("kernels.cross_entropy.xla.CHUNK", 7)
    scoring._losses.clear_cache()
    documents = [plain_ids(model.tokenizer, text) for text in texts(5, 31, 17, 2, 24)]
    for losses, ids in zip(scoring.document_losses(model, documents), documents, strict=True):
        np.testing.assert_allclose(losses, losses_alone(model, ids), atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_no_loss(model, mesh):
    documents = [plain_ids(model.tokenizer, text) for text in texts(9, 15, 12)]
    with on_mesh(make_mesh(mesh)):
        sharded = scoring.document_losses(model, documents)
    for losses, ids in zip(sharded, documents, strict=True):
        np.testing.assert_allclose(losses, losses_alone(model, ids), atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_no_logits(model, mesh):
    prompts = [plain_ids(model.tokenizer, text) for text in texts(9, 15, 12)]
    with on_mesh(make_mesh(mesh)):
        logits_BMV = scoring.last_logits(model, prompts, 3)
    for logits_MV, ids in zip(logits_BMV, prompts, strict=True):
        np.testing.assert_allclose(logits_MV, logits_alone(model, ids)[:-4:-1], atol=1e-4)


@pytest.mark.parametrize(
    "tokens, padded", [(1, 64), (64, 64), (65, 128), (258, 320), (1026, 1152), (2048, 2048)]
)
def test_pads_by_less_than_an_eighth_above_512_tokens(tokens, padded):
    assert scoring._padded_length(tokens) == padded


@pytest.mark.parametrize(("sequences", "sizes"), [(16, [8, 8]), (14, [14]), (30, [10, 10, 10])])
def test_batches_have_about_equal_sizes(sequences, sizes):
    """At most 14 sequences of 1,152 tokens fit a pass; none is padded to 14 with 2 sequences."""
    ids = [[1] * 1100] * sequences
    batches = list(scoring._batches(ids, 1100, most=64))
    assert [ids_BT.shape for _, ids_BT in batches] == [(size, 1152) for size in sizes]
    assert sum(len(batch) for batch, _ in batches) == sequences


def test_a_document_of_one_id_has_no_losses(model):
    assert [len(losses) for losses in scoring.document_losses(model, [[1], [1]])] == [0, 0]
