"""GPT models against transformers' GPT2 and GPTBigCode. Needs the extra `oracle`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from etils import epath

from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import family_of
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import check, commands, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

CASES = {
    "gpt2": ("GPT2", {}),
    "gpt2_untied": ("GPT2", {"tie_word_embeddings": False, "activation_function": "quick_gelu"}),
    "multi_query": ("GPTBigCode", {"multi_query": True, "n_inner": 96}),
    "multi_head": ("GPTBigCode", {"multi_query": False}),
    "bf16": ("GPTBigCode", {"multi_query": True, "dtype": "bfloat16"}),
}
ROWS = published.PIECES + 16


def make(folder, kind, dtype="float32", **config):
    """Saves a random model, all of its weights far from their initial values, and returns it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": ROWS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    cls = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    made = getattr(transformers, f"{kind}Config")(**{**sizes, "initializer_range": 0.15, **config})
    model = cls(made).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # biases and norms
                weight.add_(0.3 * torch.randn_like(weight))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    published.tokenizer().save(epath.Path(folder) / "tokenizer.model")


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(model, ids_BT):
    with torch.inference_mode():
        return model(torch.tensor(ids_BT)).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A folder with a model of transformers', imported, and exported again."""
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    kind, config = CASES[request.param]
    make(folder / "hf", kind, **config)
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    commands.Export(str(folder / "run"), str(folder / "out"), "hf")()
    model = load_run(str(folder / "run"))
    exact = dataclasses.replace(model.config, compute_dtype="float32", remat="none")
    return folder, dataclasses.replace(model, config=exact), theirs(folder / "hf")


def test_logits_are_transformers(case):
    _, model, reference = case
    ids_BT = np.random.default_rng(0).integers(0, ROWS, (2, 128))
    module = family_of(model.config).module(model.config)
    positions_BT = jnp.broadcast_to(jnp.arange(128), (2, 128))
    ours_BTV = jax.jit(module.apply)({"params": model.params}, ids_BT, positions_BT)
    theirs_BTV = their_logits(reference, ids_BT)
    assert theirs_BTV.std() > 0.5
    np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=1e-4, rtol=0)


def test_export_is_the_original_bit_for_bit(case):
    folder, model, reference = case
    stored = json.loads((folder / "out" / "config.json").read_text())
    expected = "gpt_bigcode" if model.config.n_kv_heads == 1 else "gpt2"
    assert stored["model_type"] == expected
    assert stored["torch_dtype"] == json.loads((folder / "hf" / "config.json").read_text())["dtype"]
    exported = theirs(folder / "out")
    assert exported.config.n_positions == 128
    ids_BT = np.random.default_rng(0).integers(0, ROWS, (1, 64))
    if stored["model_type"] == reference.config.model_type:
        np.testing.assert_array_equal(
            their_logits(exported, ids_BT), their_logits(reference, ids_BT)
        )
    # A gpt_bigcode without multi-query attention becomes a gpt2, whose matmuls round otherwise.
    expected_BTV = their_logits(reference, ids_BT)
    np.testing.assert_allclose(their_logits(exported, ids_BT), expected_BTV, atol=1e-4, rtol=0)


def test_greedy_generation_token_for_token(case):
    _, model, reference = case
    prompt = np.random.default_rng(1).integers(3, ROWS, 8).tolist()
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        expected = reference.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    assert generate(model, [prompt], Sampling(max_new_tokens=64))[0] == expected


def test_a_mesh_reads_its_shards_of_packed_tensors(case):
    folder, model, _ = case
    _, source = load.open_published(folder / "hf")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4), jax.devices())
    published.assert_same(load.place_params(source, source.model, mesh), model.params)


def test_check_compares_with_transformers(case, capsys):
    folder, _, _ = case
    commands.Check(str(folder / "run"), str(folder / "hf"), tokens=100)()
    lines = capsys.readouterr().out
    assert "100 of 100" in lines


def test_check_of_more_tokens_than_positions_is_one_line(case):
    folder, _, _ = case
    with pytest.raises(UserError, match="--tokens selects has 129 tokens, and the model 128 learn"):
        commands.Check(str(folder / "run"), str(folder / "hf"), tokens=129)()
    reader = check.transformers_reader(folder / "hf")
    with pytest.raises(UserError, match="in transformers: 129 tokens have an id or a position"):
        reader.logits_TV([1] * 129)


def test_files_of_a_model_without_its_head(tmp_path):
    """OpenAI's gpt2 was saved so, with the causal masks among its tensors."""
    make(tmp_path, "GPT2")
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)
    folder = epath.Path(tmp_path)
    _, source = load.open_published(folder)
    before = {name: source.tensor(name) for name in ("embedding", "q", "v_bias", "down")}
    safetensors.save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, source = load.open_published(folder)
    for name, tensor in before.items():
        np.testing.assert_array_equal(source.tensor(name), tensor)


def test_a_wrong_shape_names_the_tensor_of_the_file(tmp_path):
    make(tmp_path, "GPT2")
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    name = "transformer.h.1.attn.c_attn.weight"
    tensors[name] = tensors[name][:, :128].contiguous()
    safetensors.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    problem = rf"{name} has shape \(64, 128\), but config\.json describes \(64, 192\)"
    with pytest.raises(UserError, match=problem):
        load.open_published(epath.Path(tmp_path))
