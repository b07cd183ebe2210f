"""config.json, params.json and index files: every field has a type and a range."""

import json
import math
import shutil

import hypothesis.strategies as st
import published
import pytest
from damage import INDEX, SHARD, edited, edited_params
from etils import epath
from hypothesis import HealthCheck, given, settings

from codellama_jax.errors import UserError
from codellama_jax.models.llama import params_json
from codellama_jax.models.llama.config import ROPE_FIELDS
from codellama_jax.weights import huggingface, layout, load, meta

HUGE = 10**30
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NAN, INFINITY = math.nan, math.inf
RANGES = {  # values of a field, and the text of the message
    "vocab_size": [
        (HUGE, r"vocab_size must be a whole number between 1 and 10,000,000, got 1000000"),
        (0, "got 0"),
        (-1, "got -1"),
        (1.5, r"got 1.5"),
        (True, "got true"),
    ],
    "hidden_size": [
        ("32", "hidden_size must be a whole number between 1 and 1,000,000, got the string '32'"),
        ([], "got a list"),
        (INFINITY, "got Infinity"),
    ],
    "num_hidden_layers": [(HUGE, "num_hidden_layers must be a whole number between 1 and 10,000")],
    "head_dim": [
        (HUGE, "head_dim must be"),
        (3, "head_dim gives heads of width 3: it must be even"),
    ],
    "num_attention_heads": [(0, "num_attention_heads must be"), ({}, "got an object")],
    "num_key_value_heads": [(3, "num_key_value_heads must be a divisor of the 8 attention heads")],
    "intermediate_size": [(-5, "intermediate_size must be")],
    "rms_norm_eps": [
        ("1e-5", "rms_norm_eps must be a number between 0 and 1, got the string '1e-5'"),
        (NAN, "between 0 and 1, got NaN"),
        (INFINITY, "got Infinity"),
        (-1e-5, "got -1e-05"),
        (2, "got 2"),
    ],
    "rope_theta": [("big", "rope_theta must be a number"), (NAN, "NaN"), (10**400, "characters")],
    "max_position_embeddings": [("x", "max_position_embeddings must be"), (HUGE, "got 1000")],
    "tie_word_embeddings": [("no", "tie_word_embeddings must be true or false, got the string")],
    "attention_bias": [
        (True, "lacks model.layers.0.self_attn.q_proj.bias"),
        (1, "attention_bias must be true or false"),
    ],
    "use_sliding_window": [(True, "use_sliding_window must be false, got true")],
    "layer_types": [
        (["full_attention", "sliding_attention"], "layer_types must be null, or 'full_attention'"),
        ("full_attention", "layer_types must be null, or"),
    ],
    "mlp_bias": [(True, "mlp_bias must be false, got true")],
    "hidden_act": [("gelu", "hidden_act must be 'silu', got the string 'gelu'"), ([], "a list")],
    "model_type": [
        (
            "bert",
            "must be 'llama' or 'qwen2' or 'gpt2' or 'gpt_bigcode', got the string 'bert'",
        )
    ],
    "quantization_config": [({"bits": 4}, "quantization_config must be null")],
    "partial_rotary_factor": [(0.5, "partial_rotary_factor must be 1, got 0.5")],
    "rope_scaling": [
        ("linear", "rope_scaling must be an object or null, got the string 'linear'"),
        (["linear"], "got a list"),
        (
            {"rope_type": "yarn", "factor": 4.0},
            "rope_type must be one of 'default', 'linear', 'llama3', 'dynamic',.* 'yarn'",
        ),
        ({"rope_type": "longrope"}, "rope_scaling.rope_type must be one of .* 'longrope'"),
        ({"rope_type": ["linear"]}, "rope_scaling.rope_type must be .* got a list"),
        ({"type": "linear", "factor": 0}, "rope_scaling.factor must be a number .* got 0"),
        ({"type": "linear", "factor": "4.0"}, "factor must be a number .* the string '4.0'"),
        ({"rope_type": "linear"}, "rope_scaling.factor is missing: it must be a number"),
        ({"factor": 4.0}, "rope_scaling.factor must be absent, or .* 'linear', got 4.0"),
        ({"type": None, "factor": 4.0}, "rope_scaling.factor must be absent, or"),
        ({"rope_type": "linear", "type": "default", "factor": 2}, "rope_type and type equal"),
        ({"rope_type": "linear", "factor": 2, "beta_fast": 32}, "rope_scaling.beta_fast must be"),
    ],
    "rope_parameters": [
        ({"rope_theta": 5.0}, "rope_parameters.rope_theta is 5 and rope_theta is 1e.06"),
        ({"rope_type": "yarn"}, "rope_parameters.rope_type must be"),
        ({"rope_type": "llama3"}, "rope_parameters.factor is missing: it must be a number"),
        ({**LLAMA3, "low_freq_factor": None}, "rope_parameters.low_freq_factor must be a number"),
        ({**LLAMA3, "high_freq_factor": 1}, "high_freq_factor must be above low_freq_factor.* 1,"),
        ({**LLAMA3, "beta_fast": 1}, "beta_fast must be absent: llama3 RoPE has no such setting"),
        ({"rope_type": "dynamic"}, "rope_parameters.factor is missing"),
        (
            {"rope_type": "dynamic", "factor": 2, "original_max_position_embeddings": 8},
            "original_max_position_embeddings must be absent, or 64, the max_position_embeddings",
        ),
        ({"rope_theta": "x"}, "rope_parameters.rope_theta must be a number"),
    ],
}
CASES = [(name, value, text) for name, values in RANGES.items() for value, text in values]
META = [
    ("ffn_dim_multiplier", INFINITY, "ffn_dim_multiplier must be a number .* got Infinity"),
    ("ffn_dim_multiplier", NAN, "got NaN"),
    ("ffn_dim_multiplier", -1, "got -1"),
    ("norm_eps", "1e-5", "norm_eps must be a number between 0 and 1, got the string '1e-5'"),
    ("dim", HUGE, "dim must be a whole number between 1 and 1,000,000"),
    ("n_layers", HUGE, "n_layers must be a whole number between 1 and 10,000"),
    ("n_heads", 0, "n_heads must be a whole number"),
    ("n_heads", None, "n_heads must be a whole number .*, got null"),
    ("n_kv_heads", 3, "n_kv_heads must be a divisor of the 8 attention heads"),
    ("vocab_size", 7, "vocab_size must be -1 or the 516 rows of output.weight, got 7"),
    ("rope_theta", [], "rope_theta must be a number"),
    ("use_scaled_rope", True, "use_scaled_rope must be false: Llama 3.1's scaling"),
    ("moe", {"num_experts": 8}, "moe: not a setting of Llama 2"),
]
CERTAIN = [  # what older and newer files write, without a doubt about its meaning
    ({"head_dim": None, "num_key_value_heads": 8, "num_attention_heads": 8}, {}),
    ({"rope_scaling": None}, {}),
    ({"rope_scaling": {"type": None}}, {}),
    ({"rope_scaling": {"type": None, "factor": None}}, {}),
    ({"rope_scaling": {"type": "linear", "factor": 4}}, {"rope_scaling": 4.0}),
    ({"rope_theta": None, "rope_parameters": {"rope_theta": 5.0}}, {"rope_theta": 5.0}),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}},
        {"rope_scaling": 2.0},
    ),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {}),
    (
        {"rope_scaling": LLAMA3},
        {"rope_scaling": 8.0, "rope_type": "llama3", "rope_original_length": 32},
    ),
    # transformers takes max_position_embeddings for a length that is not there.
    (
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": None}},
        {"rope_scaling": 8.0, "rope_type": "llama3", "rope_original_length": 64},
    ),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": 2.0, "rope_type": "dynamic", "rope_original_length": 64},
    ),
    ({"rms_norm_eps": None}, {"norm_eps": 1e-6}),
    ({"quantization_config": None, "attention_bias": None, "hidden_act": None}, {}),
]


@pytest.fixture(scope="module")
def copies(folders, tmp_path_factory):
    """Copies of the published layouts whose files of settings a test may overwrite."""
    copy = epath.Path(tmp_path_factory.mktemp("copies"))
    for kind in ("hf", "meta"):
        shutil.copytree(folders / kind, copy / kind)
    return copy


@pytest.fixture
def hf(folders, copies):
    shutil.copy(folders / "hf" / "config.json", copies / "hf")
    return copies / "hf"


@pytest.mark.parametrize("name, value, message", CASES)
def test_a_field_out_of_its_range_is_named_with_its_value(hf, name, value, message):
    edited(hf, **{name: value})
    with pytest.raises(UserError, match=message) as error:
        huggingface.open_source(hf)
    assert str(hf) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "model_type", "num_hidden_layers"])
def test_a_field_that_is_missing_is_named(hf, name):
    edited(hf, **{name: None})
    with pytest.raises(UserError, match=f"config.json: {name} is missing: it must be"):
        huggingface.open_source(hf)


@pytest.mark.parametrize("name, value, message", META)
def test_a_field_of_params_json_out_of_its_range_is_named(folders, copies, name, value, message):
    shutil.copy(folders / "meta" / "params.json", copies / "meta")
    edited_params(copies / "meta", **{name: value})
    with pytest.raises(UserError, match=f"params.json: .*{message}"):
        meta.open_source(copies / "meta")


@pytest.mark.parametrize("changes, expected", CERTAIN)
def test_settings_of_certain_meaning_are_read(hf, changes, expected):
    config = json.loads((hf / "config.json").read_text()) | changes
    model = published.MODEL
    if "num_attention_heads" in changes:
        return  # read below, with the width that the heads give
    (hf / "config.json").write_text(json.dumps(config))
    opened = huggingface.open_source(hf).model
    for name in (*ROPE_FIELDS, "norm_eps", "head_dim", "attention_bias"):
        assert getattr(opened, name) == expected.get(name, getattr(model, name)), name


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([HUGE, -HUGE, 10**400, 2**31, 2**63, 0.5, 1e308, NAN, INFINITY, -INFINITY]),
    st.sampled_from(
        ["", "linear", "dynamic", "llama3", "llama", "qwen2", "../x", SHARD, "model.safetensors"]
    ),
    st.text(max_size=3),
    st.just([]),
    st.recursive(
        st.none() | st.integers(0, 9) | st.floats(),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["type", "rope_type", "factor", "rope_theta", "x"]), inner
            )
        ),
        max_leaves=4,
    ),
)
FIELDS = {
    "config.json": [*RANGES, "weight_map", "architectures", "bos_token_id"],
    "params.json": sorted(params_json.KNOWN) + ["moe", "head_dim"],
    INDEX: ["weight_map", "metadata"],
}


def opens_or_is_one_line(folder):
    try:
        source = load.open_published(folder)[1]
        for key in layout.names(source.model):
            source.tensor(*key)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_file_of_settings_makes_a_traceback(folders, copies, data):
    file = data.draw(st.sampled_from(sorted(FIELDS)))
    kind = "meta" if file == "params.json" else "hf"
    folder = copies / kind
    values = {}
    if file != INDEX:
        values = json.loads((folders / kind / file).read_text())
    else:
        names = st.sampled_from(["x", "lm_head.weight"])
        values["weight_map"] = data.draw(st.dictionaries(names, JUNK, max_size=2))
        if (folder / "model.safetensors").exists():
            (folder / "model.safetensors").rename(folder / SHARD)
    changes = st.dictionaries(st.sampled_from(FIELDS[file]), JUNK, max_size=2)
    text = json.dumps(values | data.draw(changes))
    encoded = text.encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
    if data.draw(st.integers(0, 5)) == 0:
        encoded = encoded[: data.draw(st.integers(0, len(encoded)))]
    try:
        (folder / file).write_bytes(encoded)
        opens_or_is_one_line(folder)
    finally:
        (folder / file).unlink()
        if file != INDEX:
            shutil.copy(folders / kind / file, folder)
        elif (folder / SHARD).exists():
            (folder / SHARD).rename(folder / "model.safetensors")
