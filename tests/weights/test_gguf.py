"""GGUF files: every type of tensor, both orders of q and k, and exports that are read back."""

from dataclasses import replace

import gguf
import gguf_cases
import jax.numpy as jnp
import numpy as np
import published
import pytest
from etils import epath
from gguf.quants import dequantize

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.errors import UserError
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.llama import gguf_rope
from codellama_jax.weights import commands, gguf_files, gguf_header, gguf_writing, load, store
from codellama_jax.weights.layout import names

LLAMA3 = {
    "rope_type": "llama3",
    "rope_scaling": 8.0,
    "rope_original_length": 8192,
    "head_dim": 64,
    "n_heads": 2,
    "n_kv_heads": 1,
    "rope_theta": 5e5,
}
MODELS = {
    "llama": {},
    "tied": {"tied_embeddings": True},
    "linear": {"rope_scaling": 4.0},
    "llama3": LLAMA3,
    "llama3_other": {**LLAMA3, "rope_low_factor": 1.0, "rope_high_factor": 6.0},
    "qwen2": {"attention_bias": "qkv"},
    "biased": {"attention_bias": "all"},
    "wide_heads": {"head_dim": 8},
}


def exported(tmp_path, kind="f32", **changes):
    """Returns the source of a random model, and the path of its export."""
    model = replace(published.MODEL, **changes)
    source = gguf_cases.random_source(model)
    gguf_writing.write(source, published.tokenizer(), epath.Path(tmp_path) / "out", kind)
    return source, epath.Path(tmp_path) / "out" / "model.gguf"


def assert_equal_tensors(source, other):
    for key in names(source.model):
        np.testing.assert_array_equal(source.tensor(*key), other.tensor(*key), str(key))


@pytest.mark.parametrize("name", MODELS)
def test_an_export_in_float32_is_read_back_bit_for_bit(name, tmp_path):
    source, path = exported(tmp_path, **MODELS[name])
    other = gguf_files.open_source(path)
    same = ("compute_dtype", "remat")
    assert other.model == replace(source.model, **{key: getattr(other.model, key) for key in same})
    assert other.context == source.context
    assert_equal_tensors(source, other)


@pytest.mark.parametrize("kind, dtype", [("f16", "float16"), ("bf16", "bfloat16")])
def test_an_export_is_rounded_to_its_type(kind, dtype, tmp_path):
    source, path = exported(tmp_path, kind)
    other = gguf_files.open_source(path)
    assert other.dtypes["q"] == jnp.dtype(dtype)
    assert other.dtypes["final_norm"] == np.float32  # vectors are never rounded
    rounded = source.tensor("q", 1).astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(other.tensor("q", 1), rounded)


def test_q8_0_differs_by_half_a_step_of_each_block(tmp_path):
    source, path = exported(tmp_path, "q8_0")
    other = gguf_files.open_source(path)
    for name in ("embedding", "q", "down", "head"):
        blocks = source.tensor(name, 0).reshape(-1, 32)
        steps = np.abs(blocks).max(1, keepdims=True) / 127
        errors = np.abs(other.tensor(name, 0).reshape(-1, 32) - blocks)
        # The step itself is rounded to float16.
        assert (errors <= steps / 2 + 127 * steps * 2**-11).all(), name


def test_rows_that_no_block_of_q8_0_fits_are_float16(tmp_path):
    _, path = exported(tmp_path, "q8_0", d_ff=40)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(str(path)).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == "Q8_0"


@pytest.mark.parametrize("bias, is_permuted", [("none", True), ("qkv", False)])
def test_the_rows_of_q_have_the_order_of_the_architecture(bias, is_permuted, tmp_path):
    """In a file of a `llama`, the pair (i, i + H / 2) of a head is in the rows 2i and 2i + 1."""
    source, path = exported(tmp_path, head_dim=8, attention_bias=bias)
    tensors = {t.name: t.data for t in gguf.GGUFReader(str(path)).tensors}
    stored = tensors["blk.1.attn_q.weight"].reshape(8, 8, 32)
    ours = source.tensor("q", 1).reshape(8, 8, 32)
    for i in range(4):
        even, odd = (2 * i, 2 * i + 1) if is_permuted else (i, i + 4)
        np.testing.assert_array_equal(stored[:, even], ours[:, i])
        np.testing.assert_array_equal(stored[:, odd], ours[:, i + 4])
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight"], source.tensor("v", 1))


def by_hand(data, kind):
    """Returns the values of rows, by the published layout of three types of blocks of 32."""
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    blocks = np.ascontiguousarray(data).reshape(-1, size)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return scales * blocks[:, 2:].view(np.int8)
    numbers = blocks[:, -16:]
    # The first 16 values are the low halves of the bytes, the other 16 the high halves.
    values = np.concatenate([numbers & 15, numbers >> 4], axis=1).astype(np.float32)
    if kind == "Q4_0":
        return scales * (values - 8)
    return scales * values + blocks[:, 2:4].copy().view(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", [*gguf_header.PLAIN, *gguf_header.QUANTIZED])
def test_every_type_of_tensor(kind, tmp_path):
    qtype = gguf.GGMLQuantizationType[kind]
    tensors = gguf_cases.wide_tensors(qtype if kind in gguf_header.QUANTIZED else gguf_cases.F32)
    if kind in ("F16", "BF16"):
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                tensors[name] = (gguf.quantize(tensor, qtype), qtype)
    path = gguf_cases.write(tmp_path / "x.gguf", gguf_cases.KEYS, tensors)
    source = gguf_files.open_source(epath.Path(path))
    assert source.model == replace(gguf_cases.WIDE, compute_dtype="bfloat16")
    for name in ("embedding", "v", "down", "head"):
        stored = tensors[gguf_files.file_name(name, 0)]
        expected = dequantize(*stored) if isinstance(stored, tuple) else stored
        assert np.isfinite(expected).all() and expected.std() > 0
        np.testing.assert_array_equal(source.tensor(name, 0).astype(np.float32), expected)
        if kind in ("Q8_0", "Q4_0", "Q4_1"):
            hand = by_hand(stored[0], kind).reshape(expected.shape)
            np.testing.assert_allclose(expected, hand, rtol=1e-6)
        # A part of the rows and columns is dequantized alone.
        part = source.read(name, 0, (slice(3, 7), slice(10, 20)))
        np.testing.assert_array_equal(part.astype(np.float32), expected[3:7, 10:20])


def test_a_part_of_q_consists_of_heads(tmp_path):
    path = gguf_cases.write(tmp_path / "x.gguf", gguf_cases.KEYS, gguf_cases.wide_tensors())
    source = gguf_files.open_source(epath.Path(path))
    full = source.tensor("q", 0)
    np.testing.assert_array_equal(source.read("q", 0, (slice(64, 192), slice(None))), full[64:192])


def test_a_full_disk_is_named_although_numpy_does_not(tmp_path, monkeypatch):
    def write_part(*_):
        raise OSError("problem writing element 1024 to file")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", write_part)
    with pytest.raises(UserError, match=r"cannot write .*: no space left on the device"):
        exported(tmp_path, "f32")
    assert not list(tmp_path.iterdir())


def test_import_and_export_by_the_commands(tmp_path, capsys):
    source, path = exported(tmp_path, "f32", attention_bias="all")
    run, again = tmp_path / "run", tmp_path / "again"
    commands.Import(f"gguf:{path}", str(run))()
    commands.Export(str(run), str(again), "gguf", integrity=True)()
    commands.Check(str(again), integrity=True)()
    assert "1 files of" in capsys.readouterr().out
    assert_equal_tensors(source, gguf_files.open_source(epath.Path(again / "model.gguf")))
    assert_equal_tensors(source, store.open_run(epath.Path(run), "", ""))
    tokenizer = StageFolder(epath.Path(run)).load_tokenizer()
    assert tokenizer.eot_id == published.tokenizer().eot_id
    assert load.tokenizer_of(f"gguf:{path}").vocab_size == tokenizer.vocab_size


def test_rows_of_padding_are_dropped(tmp_path, capsys):
    """llama.cpp's converter names a token [PADn] for each row of the embedding without one."""
    model = replace(published.MODEL, vocab_size=900)
    source = gguf_cases.random_source(model)
    folder = epath.Path(tmp_path)
    gguf_writing.write(source, published.tokenizer(900), folder / "out")
    path = folder / "out" / "model.gguf"
    metadata = gguf_header.read_header(path).metadata
    for row in range(516, 900):
        metadata["tokenizer.ggml.tokens"][row] = f"[PAD{row}]"
        metadata["tokenizer.ggml.token_type"][row] = 5
    tensors = {t.name: t.data for t in gguf.GGUFReader(str(path)).tensors}
    del metadata["general.architecture"]
    padded = gguf_cases.write(folder / "padded.gguf", metadata, tensors)
    commands.Import(str(padded), str(folder / "run"))()
    assert "[PAD516], [PAD517], [PAD518] and 381 more are dropped" in capsys.readouterr().err
    assert store.open_run(folder / "run", "", "").model.vocab_size == 516


def test_factors_of_published_llama3_settings():
    """Factors by the formula of Meta's code: 1, the factor, and between them interpolated."""
    model = replace(published.MODEL, **{**LLAMA3, "head_dim": 128})
    factors_H = gguf_rope.factors_of(model)
    wavelengths_H = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    assert (factors_H[wavelengths_H < 8192 / 4] == 1).all()
    assert (factors_H[wavelengths_H > 8192] == 8).all()
    between_H = (wavelengths_H > 8192 / 4) & (wavelengths_H < 8192)
    smooth_H = (8192 / wavelengths_H[between_H] - 1) / 3
    expected_H = 1 / ((1 - smooth_H) / 8 + smooth_H)
    np.testing.assert_allclose(factors_H[between_H], expected_H, rtol=1e-5)


def test_models_that_llama_cpp_does_not_run_are_refused(tmp_path):
    target = epath.Path(tmp_path) / "out"
    dynamic = replace(
        published.MODEL, rope_type="dynamic", rope_scaling=2.0, rope_original_length=64
    )
    gpt = GPTConfig(516, 32, 2, 4, 4, 8, 64, n_positions=64)
    for model, problem in ((dynamic, "dynamic RoPE"), (gpt, "of the family gpt")):
        source = published.source_of({}, model)
        with pytest.raises(UserError, match=rf"{problem}.*: export it --to hf"):
            gguf_writing.write(source, published.tokenizer(), target)
        assert not target.exists()


def test_options_that_exclude_each_other():
    with pytest.raises(UserError, match="--dtype is float16: with --to gguf, pass --type instead"):
        commands.Export("run", "out", "gguf", dtype="float16")()
    with pytest.raises(UserError, match="--type is q8_0: only GGUF has it; pass --to gguf"):
        commands.Export("run", "out", "hf", type="q8_0")()
