"""GGUF files that are damaged or of another model: one line each, and nothing is written."""

import struct

import gguf
import gguf_cases
import numpy as np
import pytest
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.weights import commands, gguf_header, load

Q = "blk.0.attn_q.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def replaced(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def retyped(path, kind):
    """Gives a tensor another type: its number follows two sizes of 8 bytes after the name."""
    place = path.read_bytes().index(Q.encode()) + len(Q) + 4 + 16
    replaced(path, place, struct.pack("<I", kind))


def resized(path, axes):
    place = path.read_bytes().index(Q.encode()) + len(Q)
    replaced(path, place, struct.pack("<I", axes))


FILES = {  # what is done to a file, and what the message must match
    "empty": (lambda p: p.write_bytes(b""), "is empty: download it again"),
    "pointer": (lambda p: p.write_bytes(POINTER), "is a git-lfs pointer"),
    "page": (lambda p: p.write_text("<!DOCTYPE html>"), "is an HTML page, not weights"),
    "magic": (lambda p: replaced(p, 0, b"GGML"), "is not a GGUF file: it starts with b'GGML'"),
    "version": (lambda p: replaced(p, 4, struct.pack("<I", 1)), "GGUF file version 1: little-end"),
    "endian": (lambda p: replaced(p, 4, struct.pack(">I", 3)), "GGUF file for big-endian machines"),
    "tail": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is truncated .it has .* bytes of"),
    "header": (lambda p: p.write_bytes(p.read_bytes()[:3000]), "is truncated or damaged .its head"),
    "count": (lambda p: replaced(p, 8, b"\xff" * 8), "x.gguf is (truncated or )?damaged"),
    "keys": (lambda p: replaced(p, 16, b"\xff" * 8), "x.gguf is (truncated or )?damaged"),
    "length": (lambda p: replaced(p, 24, b"\xff" * 8), "its header needs 18,446,744,073,709,551,"),
    "value": (lambda p: replaced(p, 52, struct.pack("<I", 77)), "metadata has the unknown type 77"),
    "quantized": (lambda p: retyped(p, 16), f"{Q} is IQ2_XXS, read are F32, F16, .*: convert or"),
    "unknown": (lambda p: retyped(p, 99), f"{Q} is type 99, read are F32, F16"),
    "axes": (lambda p: resized(p, 5), f"its tensor {Q} has 5 axes"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "holds neither config.json nor params.json"),
    "missing": (lambda p: p.unlink(), "x.gguf is missing: is the download complete"),
}


def without(name):
    return lambda keys, tensors: (keys.pop(name, None), tensors.pop(name, None))


def changed(**values):
    return lambda keys, tensors: keys.update({k.replace("__", "."): v for k, v in values.items()})


MODELS = {
    "tensor": (without(Q), f"x.gguf lacks {Q}: is the download complete"),
    "embedding": (without("token_embd.weight"), "has no matrix token_embd.weight: is it a lang"),
    "extra": (
        lambda keys, tensors: tensors.update({"blk.0.lora": tensors[Q]}),
        "x.gguf holds tensors that this model has no place for: blk.0.lora",
    ),
    "shape": (
        changed(llama__feed_forward_length=128),
        r"x.gguf: blk.0.ffn_gate.weight has shape \(256, 256\), but its metadata describes",
    ),
    "layers": (changed(llama__block_count=2), "x.gguf lacks blk.1.attn_norm.weight, .* and 6 more"),
    "heads": (changed(llama__attention__head_count_kv=3), "head_count_kv must be a divisor of the"),
    "odd": (changed(llama__attention__key_length=3), "key_length gives heads of width 3: it must"),
    "width": (changed(llama__rope__dimension_count=32), "rope.dimension_count must be 64, the wid"),
    "width_type": (changed(llama__embedding_length="x"), "llama.embedding_length must be a whole"),
    "no_width": (without("llama.embedding_length"), "llama.embedding_length is missing"),
    "experts": (changed(llama__expert_count=8), "llama.expert_count must be absent or 0: it is n"),
    "yarn": (changed(llama__rope__scaling__type="yarn"), "scaling.type must be 'none' or 'linear'"),
    "factors": (
        lambda keys, tensors: tensors.update(
            {"rope_freqs.weight": np.arange(1, 33, dtype=np.float32)}
        ),
        "rope_freqs.weight holds factors that are not those of llama3 scaling",
    ),
    "split": (changed(split__count=3), "is one of 3 files of a model: join them with `llama-gguf-"),
    "no_tokenizer": (
        lambda keys, tensors: [keys.pop(key) for key in list(keys) if "tokenizer" in key],
        r"x.gguf has no tokenizer .*: name the model's own with --tokenizer",
    ),
    "another_tokenizer": (
        lambda keys, tensors: tensors.update(
            {"token_embd.weight": tensors[Q][:20], "output.weight": tensors[Q][:20]}
        ),
        r"has 20 rows \(vocab_size\) and the tokenizer 500 pieces: pass the model's own tokenizer",
    ),
}


@pytest.fixture(scope="module")
def tensors():
    drawn = gguf_cases.wide_tensors()
    rows = np.zeros((516, 256), np.float32)
    return {**drawn, "token_embd.weight": rows, "output.weight": rows}


@pytest.fixture
def path(tensors, tmp_path):
    keys = {**gguf_cases.KEYS, **gguf_cases.tokenizer_keys()}
    return gguf_cases.write(tmp_path / "x.gguf", keys, tensors)


def assert_refused(path, problem):
    before = sorted(path.parent.iterdir())
    with pytest.raises(UserError, match=problem) as error:
        commands.Import(str(path), str(path.parent / "run"))()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert sorted(path.parent.iterdir()) == before  # nothing half written


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_one_line(name, path):
    change, problem = FILES[name]
    change(path)
    assert_refused(path, problem)


@pytest.mark.parametrize("name", MODELS)
def test_another_model_is_refused_in_one_line(name, tensors, tmp_path):
    change, problem = MODELS[name]
    keys, changed_tensors = {**gguf_cases.KEYS, **gguf_cases.tokenizer_keys()}, dict(tensors)
    change(keys, changed_tensors)
    assert_refused(gguf_cases.write(tmp_path / "x.gguf", keys, changed_tensors), problem)


def test_another_architecture_is_refused(tensors, tmp_path):
    path = gguf_cases.write(tmp_path / "x.gguf", {}, tensors, architecture="mamba")
    allowed = "general.architecture must be 'llama' or 'qwen2', got the string 'mamba'"
    assert_refused(path, allowed)


def test_a_file_that_ends_anywhere_is_refused(path):
    """In the header any byte may be the last; of the weights, the last one counts."""
    content = path.read_bytes()
    for length in [*range(4, 200, 7), *range(200, len(content), len(content) // 60)]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="is truncated"):
            gguf_header.read_header(epath.Path(path))


def test_random_bytes_in_the_header_never_escape(path):
    """Each is read, or refused as a mistake of the user's file."""
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, 1200, 60):
        path.write_bytes(content)
        replaced(path, int(place), rng.bytes(4))
        try:
            load.open_published(epath.Path(path))
            load.needed_tokenizer(epath.Path(path))
        except UserError:
            refused += 1
    assert refused > 10


def test_a_folder_of_files_asks_for_one(path):
    path.rename(path.parent / "model.Q4_K_M.gguf")
    with pytest.raises(UserError, match=r"holds GGUF files: name one, such as .*Q4_K_M.gguf"):
        load.open_published(epath.Path(path.parent))
    (path.parent / "x.txt").write_text("x")
    allowed = "x.txt is a file: name a folder of weights, a run, or a FILE.gguf"
    with pytest.raises(UserError, match=allowed):
        commands.Import(str(path.parent / "x.txt"), str(path.parent / "run"))()


def test_the_writer_of_the_package_reads_what_it_wrote(path):
    """The cases above change a good file."""
    assert {t.name for t in gguf.GGUFReader(str(path)).tensors} == set(
        gguf_header.read_header(epath.Path(path)).tensors
    )
    kind, source = load.open_published(epath.Path(path))
    assert (kind, source.model.vocab_size) == ("gguf", 516)
