"""Adapters as PEFT's folder: on the exported base they give the logits of the merged weights."""

import importlib.util
import json

import jax.numpy as jnp
import lora_cases
import numpy as np
import published
import pytest
from etils import epath

from codellama_jax.checkpoints.base import Base
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.checkpoints.loading import load_frozen, load_run
from codellama_jax.config import LoraConfig, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.models.family import family_of
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import commands

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
pytestmark = pytest.mark.slow  # three models are exported and opened in transformers

ROWS = published.PIECES + 16
GPT = GPTConfig(
    ROWS,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    d_ff=64,
    n_positions=64,
    compute_dtype="float32",
    remat="none",
    tied_embeddings=True,
)
MULTI_QUERY = GPTConfig(**{**vars(GPT), "n_kv_heads": 1})
# The model, the targets, and the rank of each module.
CASES = {
    "llama": (published.MODEL, ("q", "k", "o", "up", "down"), {}),
    "gpt2": (GPT, ("q", "v", "o", "down"), {"c_attn": 4}),
    "gpt_bigcode": (MULTI_QUERY, ("q", "k", "v", "up"), {"c_attn": 6}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A base and a stage with adapters of it, exported: the base, the merged weights, adapters."""
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    model, targets, ranks = CASES[request.param]
    lora = LoraConfig(2, alpha=5.0, targets=targets)
    stage = lora_cases.adapted_stage(lora, model=model)
    plain = lora_cases.toy.stage(model=model)
    params = published.random_params(model)
    base = lora_cases.write_stage(folder / "base", plain, params)
    _, read = load_frozen(stage, Base(base, None), make_mesh(MeshConfig()))
    adapters = lora_cases.random_adapters(model, lora)
    lora_cases.write_stage(folder / "tuned", stage, adapters, read)
    for name in ("base", "tuned"):
        published.tokenizer().save(folder / name / "tokenizer.model")
        commands.Export(str(folder / name), str(folder / f"{name}_hf"), "hf")()
    commands.Export(str(folder / "tuned"), str(folder / "adapter"), "hf", adapter=True)()
    return folder, ranks


IDS_BT = np.random.default_rng(0).integers(0, ROWS, (1, 32))


def their_logits(model):
    with torch.inference_mode():
        return model(torch.tensor(IDS_BT)).logits.numpy()


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def our_logits(folder):
    model = load_run(str(folder))
    module = family_of(model.config).module(model.config)
    return module.apply({"params": model.params}, IDS_BT, jnp.arange(32)[None])


def with_adapters(folder):
    """Returns the base with W + alpha / rank x B A, in torch's arithmetic."""
    model, config = (
        opened(folder / "base_hf"),
        json.loads((folder / "adapter" / "adapter_config.json").read_text()),
    )
    tensors = safetensors.load_file(str(folder / "adapter" / "adapter_model.safetensors"))
    for name, module in model.named_modules():
        a = tensors.pop(f"base_model.model.{name}.lora_A.weight", None)
        if a is None:
            continue
        end = [key for key in config["target_modules"] if name.endswith(f".{key}")]
        assert len(end) == 1 and len(a) == config["rank_pattern"].get(end[0], config["r"])
        factor = config["alpha_pattern"].get(end[0], config["lora_alpha"]) / len(a)
        delta = factor * tensors.pop(f"base_model.model.{name}.lora_B.weight") @ a
        module.weight.data += delta.T if config["fan_in_fan_out"] else delta
    assert not tensors
    return model


def test_adapters_give_the_logits_of_the_run(case):
    folder, ranks = case
    expected = our_logits(folder / "tuned")
    base, merged = (their_logits(opened(folder / f"{name}_hf")) for name in ("base", "tuned"))
    assert np.abs(merged - base).max() > 0.02  # far above the tolerances below
    np.testing.assert_allclose(merged, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(their_logits(with_adapters(folder)), expected, atol=1e-5, rtol=1e-5)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == ranks and not config["use_rslora"]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_peft_loads_the_folder(case):
    import peft

    folder, _ = case
    model = peft.PeftModel.from_pretrained(opened(folder / "base_hf"), str(folder / "adapter"))
    expected = our_logits(folder / "tuned")
    np.testing.assert_allclose(their_logits(model.eval()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("stabilized", [False, True])
def test_a_folder_that_peft_saved_is_read(case, stabilized, tmp_path):
    import peft

    folder, _ = case
    base = opened(folder / "base_hf")
    modules = {
        "llama": ["q_proj", "v_proj", "gate_proj", "down_proj"],
        "gpt2": ["c_attn", "mlp.c_proj"],
        "gpt_bigcode": ["c_attn", "c_fc"],
    }
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=modules[base.config.model_type],
        use_rslora=stabilized,
        init_lora_weights=False,  # draws B too
        fan_in_fan_out=base.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = their_logits(model)
    commands.Import(str(tmp_path / "adapter"), str(tmp_path / "run"), base=str(folder / "base"))()
    assert np.abs(our_logits(tmp_path / "run") - our_logits(folder / "base")).max() > 0.02
    np.testing.assert_allclose(our_logits(tmp_path / "run"), expected, atol=1e-5, rtol=1e-5)


def test_a_run_without_adapters_has_none_to_export(case):
    folder, _ = case
    with pytest.raises(UserError, match="base was trained without adapters: leave --adapter out"):
        commands.Export(str(folder / "base"), str(folder / "none"), "hf", adapter=True)()
    with pytest.raises(UserError, match="--adapter is given with --to meta: pass --to hf"):
        commands.Export(str(folder / "tuned"), str(folder / "none"), "meta", adapter=True)()
    assert not StageFolder(folder / "none").path.exists()
