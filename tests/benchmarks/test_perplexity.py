"""Perplexity by context length: the documents that are read, and how many tokens of each."""

import numpy as np
import pytest
from characters import texts, untrained

from codellama_jax.benchmarks.suites import perplexity
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.scoring import document_losses
from codellama_jax.models.trained import TrainedModel


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return untrained()


def test_every_length_reads_the_beginnings_of_the_same_documents(model):
    documents = texts(20, 64, 63, 100, 70, 80)
    result = perplexity.perplexity_by_length(model, documents, (16, 64, 4), documents=3)
    read = [plain_ids(model.tokenizer, documents[i])[:65] for i in (1, 3, 4)]
    losses_RT = np.stack(document_losses(model, read))
    assert list(result) == [4, 16, 64]
    for length, measures in result.items():
        assert measures["tokens"] == 3 * length and measures["documents"] == 3
        assert measures["perplexity"] == pytest.approx(
            np.exp(losses_RT[:, :length].mean()), rel=1e-5
        )
        assert measures["last_block"] == pytest.approx(
            np.exp(losses_RT[:, length - length // 4 : length].mean()), rel=1e-5
        )


def test_fewer_long_documents_than_requested_are_counted(model):
    result = perplexity.perplexity_by_length(model, texts(20, 40, 30), (8, 32), documents=8)
    assert result[32]["documents"] == 1 and result[8]["documents"] == 1


def test_names_the_longest_document_if_none_is_long_enough(model):
    with pytest.raises(UserError, match=r"1,024 tokens .* the longest document has 40"):
        perplexity.perplexity_by_length(model, texts(20, 40, 30), (8, 1024), documents=8)


def test_stops_reading_when_it_has_enough(model):
    def endless():
        while True:
            yield from texts(40)

    assert len(perplexity.long_documents(model.tokenizer, endless(), 32, 5)) == 5


def test_a_diverged_model_has_no_perplexity():
    """exp() of its loss is no number."""
    with pytest.raises(UserError, match="the loss is 1e\\+03 nats per token"):
        perplexity._measures(np.full((2, 8), 1000.0))
    with pytest.raises(UserError, match="the model has diverged"):
        perplexity._measures(np.full((2, 8), np.nan))
    with pytest.raises(UserError, match="the loss is 2e\\+03 nats per token"):
        perplexity._measures(np.array([[1.0] * 6 + [2000.0] * 2]))
    assert perplexity._measures(np.full((2, 8), 100.0))["perplexity"] == np.exp(100.0)
