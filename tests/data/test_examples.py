"""Sources without a single usable example end with one line instead of being read forever."""

import pytest

from codellama_jax.checked import FieldError
from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import pipeline
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.errors import UserError
from codellama_jax.tokenizers import sentencepiece

REFUSED = [{"role": "user", "content": "[INST]"}, {"role": "assistant", "content": "b"}]
OPTIONS = {
    "conversation": {"chat": "llama2"},
    "ranked pair": {"chat": "pangu_coder2", "examples": "pairs"},
    "record with prompt and completion": {"examples": "completions"},
    "documented function": {"examples": "docstring_to_code"},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["def f(x):\n    return x + 1\n"] * 30
    return sentencepiece.train(texts, 310, tmp_path_factory.mktemp("tokenizer"))


def sources(text):
    return {"code": [{"id": str(number), "text": text} for number in range(3)]}


def data_of(**options):
    return DataConfig(64, 2, MixtureConfig(code=1.0), InfillingConfig(0.0), **options)


@pytest.mark.parametrize("expected", OPTIONS)
def test_a_source_without_an_example_is_one_line(tokenizer, expected):
    text = conversations.canonical_text({"messages": REFUSED})
    with (
        pipeline.Batches(sources(text), data_of(**OPTIONS[expected]), tokenizer, 0, [0]) as batches,
        pytest.raises(UserError, match=f"'code', but none .* {expected}"),
    ):
        next(batches)


def test_one_example_among_many_documents_is_found(tokenizer):
    documents = sources("x = 1\n")["code"] * 60
    documents[100] = {"id": "f", "text": 'def f(x):\n    """Adds."""\n    return x\n'}
    data = data_of(examples="docstring_to_code")
    batches = pipeline.DirectBatches({"code": documents}, data, tokenizer, 0, [0, 1])
    assert set(next(batches)["documents"].flat) <= {-1, 100}


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("chat", {"chat": "llama2", "examples": "code_to_docstring"}),
        ("form", {"chat": "llama2", "infilling": InfillingConfig(0.5, form="starcoder")}),
    ],
)
def test_options_that_exclude_each_other_are_refused(field, options):
    with pytest.raises(FieldError) as error:
        DataConfig(64, 2, MixtureConfig(code=1.0), **options)
    assert field in str(error.value) or field in error.value.path
