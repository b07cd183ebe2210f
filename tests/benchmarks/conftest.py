import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import small_data as data
from toy import MODEL

from codellama_jax.errors import UserError
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sandbox import Executor
from codellama_jax.tokenizers import sentencepiece as tokenizers


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> TrainedModel:
    """A random model with a real tokenizer."""
    words = [
        f"def name_{i}(x):\n    return x + {i}\n\n\nclass Thing{i}:\n    é = '日本'\n"
        for i in range(300)
    ]
    tokenizer = tokenizers.train(words, 360, tmp_path_factory.mktemp("tokenizer"))
    config = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    tokens = jnp.zeros((1, 2), jnp.int32)

    @jax.jit
    def init() -> dict:
        params = nn.unbox(Llama(config).init(jax.random.key(0), tokens, tokens))["params"]
        # Larger weights make the predictions differ from each other.
        return jax.tree.map(lambda p: 6 * p, params)

    return TrainedModel(config, init(), tokenizer, "toy")


@pytest.fixture(scope="session")
def executor():
    try:
        executor = Executor(workers=1)
    except UserError as error:
        pytest.skip(str(error))
    with executor:
        yield executor


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """Paths of the small data in the published formats, by name."""
    root = tmp_path_factory.mktemp("data")
    records = {
        "humaneval": data.HUMANEVAL,
        "humaneval_plus": data.PLUS,
        "mbpp": data.MBPP,
        "x_python": [data.X_PYTHON],
        "x_cpp": [data.X_CPP],
        "x_js": [data.X_JS],
        "x_java": [data.X_JAVA],
        "x_go": [data.X_GO],
        "single_line": data.SINGLE_LINE,
        "docstring": data.DOCSTRINGS,
        "gsm8k/test": data.GSM8K,
        "lcc": data.LCC,
        **{kind: data.infilling(kind) for kind in ("SingleLine", "MultiLine", "RandomSpan")},
    }
    paths = {}
    for name, values in records.items():
        paths[name] = str(data.write_lines(root / f"{name}.jsonl", values))
    documents = {
        "multipl_e": data.MULTIPL_E,
        "truthfulqa": data.TRUTHFUL,
        "gsm8k/pal_few_shot": data.PAL,
    }
    for name, document in documents.items():
        (root / f"{name}.json").write_text(json.dumps(document))
        paths[name] = str(root / f"{name}.json")
    data.write_apps(root / "apps")
    (root / "filler").mkdir()
    (root / "filler" / "code.py").write_text(
        "".join(f"def name_{i}(x):\n    return x + {i}\n\n\n" for i in range(200))
    )
    return {**paths, "apps": str(root / "apps"), "filler": str(root / "filler")}
