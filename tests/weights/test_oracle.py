"""Against transformers and torch, which read and write the same files. Needs the extra `oracle`."""

import dataclasses
import json
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import toy
from etils import epath

from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.llama.model import Llama
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.tokenizers.sentencepiece_file import SENTINELS
from codellama_jax.tokenizers.transformers_files import write_tokenizer
from codellama_jax.training.loop import place, stop_flags
from codellama_jax.training.step import compile_eval_step, compile_train_step, fresh_state
from codellama_jax.weights import check, commands, load, torch_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

GQA = {"num_attention_heads": 8, "num_key_value_heads": 2}
CASES = {  # what differs among published models, every value at least once in either dtype
    "mha": {"vocab_size": 32_000},
    "gqa": {**GQA, "vocab_size": 32_016, "rope_theta": 1e6, "files": 3},
    "tied": {
        **GQA,
        "vocab_size": 32_000,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "files": 3,
    },
    "scaled": {"vocab_size": 32_016, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "bf16": {**GQA, "vocab_size": 32_016, "rope_theta": 1e6, "dtype": "bfloat16", "files": 3},
    "bf16_tied": {"vocab_size": 32_000, "tie_word_embeddings": True, "dtype": "bfloat16"},
}
LONGEST = 8192


def make(folder, files=1, dtype="float32", **config):
    """Saves a random model, all of its weights far from their initial values, and returns it."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-5,
    }
    made = transformers.LlamaConfig(
        **{**sizes, "max_position_embeddings": LONGEST, "initializer_range": 0.12, **config}
    )
    model = transformers.LlamaForCausalLM(made).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if files > 1:
        shared_out(folder, files)
    return model


def shared_out(folder, files):
    """Distributes the tensors of a folder over several files."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors_of, index = defaultdict(dict), {}
    for number, name in enumerate(sorted(tensors)):
        index[name] = f"model-{number % files + 1:05}-of-{files:05}.safetensors"
        tensors_of[index[name]][name] = tensors[name]
    for file, part in tensors_of.items():
        safetensors.save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )


def theirs(folder):
    """Loads a folder as a user of transformers does."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(model, ids_BT, positions_BT):
    with torch.inference_mode():
        return model(torch.tensor(ids_BT), position_ids=torch.tensor(positions_BT)).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of transformers', imported, and exported again."""
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    make(folder / "hf", **CASES[request.param])
    published.tokenizer(32_000).save(folder / "hf" / "tokenizer.model")
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    commands.Export(str(folder / "run"), str(folder / "out"), "hf")()
    model = load_run(str(folder / "run"))
    exact = dataclasses.replace(model.config, compute_dtype="float32", remat="none")
    return folder, dataclasses.replace(model, config=exact), theirs(folder / "hf")


def spread(rows, length, vocab):
    """Returns random ids and increasing positions up to the last one."""
    rng = np.random.default_rng(0)
    positions_BT = np.sort(
        [rng.choice(LONGEST - 1, length - 1, replace=False) for _ in range(rows)], axis=1
    )
    return rng.integers(0, vocab, (rows, length)), np.pad(
        positions_BT, ((0, 0), (0, 1)), constant_values=LONGEST - 1
    )


def test_logits_are_transformers(case):
    _, model, reference = case
    ids_BT, positions_BT = spread(2, 48, model.config.vocab_size)
    ours_BTV = jax.jit(Llama(model.config).apply)(
        {"params": model.params}, jnp.array(ids_BT), jnp.array(positions_BT)
    )
    theirs_BTV = their_logits(reference, ids_BT, positions_BT)
    assert theirs_BTV.std() > 0.5
    np.testing.assert_allclose(ours_BTV, theirs_BTV, atol=1e-4, rtol=0)


def test_export_is_the_original_bit_for_bit(case):
    folder, model, reference = case
    exported, stored = (
        theirs(folder / "out"),
        json.loads((folder / "out" / "config.json").read_text()),
    )
    ids_BT, positions_BT = spread(1, 32, model.config.vocab_size)
    np.testing.assert_array_equal(
        their_logits(exported, ids_BT, positions_BT), their_logits(reference, ids_BT, positions_BT)
    )
    assert stored["torch_dtype"] == json.loads((folder / "hf" / "config.json").read_text())["dtype"]
    assert reference.config.rope_parameters.items() <= exported.config.rope_parameters.items()
    assert exported.config.max_position_embeddings == LONGEST


def test_greedy_generation_token_for_token(case):
    folder, model, _ = case
    prompt = np.random.default_rng(1).integers(3, 32_000, 8).tolist()
    reference = theirs(folder / "out")
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        expected = reference.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
    assert generate(model, [prompt], Sampling(max_new_tokens=64))[0] == expected


@pytest.mark.parametrize("rows", [published.PIECES, published.PIECES + 16])
def test_their_tokenizer_has_our_ids(tmp_path, rows):
    ours = published.tokenizer()
    write_tokenizer(ours, rows, LONGEST, epath.Path(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    texts = ["", " ", "  x", "\n\n", "\tif x:\r\n", "é 给 🙂\0", "<PRE> <MID>", published.TEXT]
    texts += [" " * n + "x\n" + " " * n for n in range(70)]
    texts += [
        "".join(rng.choice(list("  \n\tab=-_(){}1é'<>"), rng.integers(1, 60))) for _ in range(500)
    ]
    for text in texts:
        assert tokenizer(text)["input_ids"] == [ours.bos_id, *ours.encode(text)], text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    # transformers encodes such a text as the special token, unless this option forbids it.
    for special in ("</s>", " <s>", *SENTINELS):
        ids = tokenizer(special, split_special_tokens=True)["input_ids"]
        assert max(ids) < ours.pieces and ours.eos_id not in ids
    assert len(tokenizer) == rows and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        ours.bos_id,
        ours.eos_id,
    )
    if rows > ours.pieces:
        assert tokenizer.convert_tokens_to_ids(list(SENTINELS)) == [
            ours.pre_id,
            ours.suf_id,
            ours.mid_id,
            ours.eot_id,
        ]


META = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 4,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "vocab_size": -1,
}
ROWS = published.PIECES + 16


@pytest.fixture(scope="module")
def meta_weights():
    """Weights by Meta's names, in the dtype of the published ones."""
    torch.manual_seed(1)
    D, K, F, H = META["dim"], META["n_kv_heads"], 192, META["dim"] // META["n_heads"]
    layer = {
        "attention.wq": (D, D),
        "attention.wk": (K * H, D),
        "attention.wv": (K * H, D),
        "attention.wo": (D, D),
    }
    layer |= {
        "feed_forward.w1": (F, D),
        "feed_forward.w2": (D, F),
        "feed_forward.w3": (F, D),
        "attention_norm": (D,),
        "ffn_norm": (D,),
    }
    sizes = {
        f"layers.{i}.{name}.weight": size
        for i in range(META["n_layers"])
        for name, size in layer.items()
    }
    sizes |= {"tok_embeddings.weight": (ROWS, D), "norm.weight": (D,), "output.weight": (ROWS, D)}
    weights = {}
    for name, size in sizes.items():
        is_norm = len(size) == 1
        values = 1 + 0.3 * torch.randn(size) if is_norm else 0.12 * torch.randn(size)
        weights[name] = values.bfloat16()
    return weights


def meta_logits(weights, ids_T, positions_T):
    """The published model, in fp32: RoPE multiplies neighbouring pairs as complex numbers."""
    w = {name: weight.float() for name, weight in weights.items()}
    N, K, H = META["n_heads"], META["n_kv_heads"], META["dim"] // META["n_heads"]

    def norm(x, scale):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + META["norm_eps"]) * scale

    angles = torch.outer(
        positions_T.float(), 1 / META["rope_theta"] ** (torch.arange(0, H, 2).float() / H)
    )
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rotate(x):
        pairs = torch.view_as_complex(x.reshape(len(x), -1, H // 2, 2))
        return torch.view_as_real(pairs * turn).flatten(2)

    x = w["tok_embeddings.weight"][ids_T]
    for i in range(META["n_layers"]):
        layer = {}
        for name, weight in w.items():
            if name.startswith(f"layers.{i}."):
                layer[name.removeprefix(f"layers.{i}.").removesuffix(".weight")] = weight
        h = norm(x, layer["attention_norm"])
        q, k = rotate(h @ layer["attention.wq"].T), rotate(h @ layer["attention.wk"].T)
        k, v = (
            a.reshape(len(x), K, H).repeat_interleave(N // K, 1)
            for a in (k, h @ layer["attention.wv"].T)
        )
        scores = torch.einsum("tnh,snh->nts", q, k) / H**0.5
        scores = scores.masked_fill(positions_T[None] > positions_T[:, None], -torch.inf)
        x = (
            x
            + torch.einsum("nts,snh->tnh", scores.softmax(-1), v).flatten(1)
            @ layer["attention.wo"].T
        )
        h = norm(x, layer["ffn_norm"])
        x = (
            x
            + (
                torch.nn.functional.silu(h @ layer["feed_forward.w1"].T)
                * (h @ layer["feed_forward.w3"].T)
            )
            @ layer["feed_forward.w2"].T
        )
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def axis_of(name):
    """The axis that model-parallel ranks split, as fairscale's parallel layers do."""
    if "norm" in name:
        return None
    return 1 if any(part in name for part in ("tok_embeddings", ".wo.", ".w2.")) else 0


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_meta_files_of_any_width(meta_weights, tmp_path, ranks):
    folder = epath.Path(tmp_path / "meta")
    folder.mkdir()
    for rank in range(ranks):
        part = {
            n: t.chunk(ranks, axis_of(n))[rank].clone() if axis_of(n) is not None else t
            for n, t in meta_weights.items()
        }
        torch.save(part | {"rope.freqs": torch.ones(4)}, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps(META))
    published.tokenizer().save(folder / "tokenizer.model")
    commands.Import(str(folder), str(tmp_path / "run"))()
    model = load_run(str(tmp_path / "run"))
    exact = dataclasses.replace(model.config, compute_dtype="float32", remat="none")
    ids_BT, positions_BT = spread(1, 48, ROWS)
    ours_BTV = jax.jit(Llama(exact).apply)(
        {"params": model.params}, jnp.array(ids_BT), jnp.array(positions_BT)
    )
    wanted_TV = meta_logits(meta_weights, torch.tensor(ids_BT[0]), torch.tensor(positions_BT[0]))
    np.testing.assert_allclose(ours_BTV[0], wanted_TV, atol=1e-4, rtol=0)
    commands.Export(str(tmp_path / "run"), str(tmp_path / "out"), "meta", ranks=ranks)()
    parts = [
        torch.load(file, weights_only=True, mmap=True)
        for file in sorted((tmp_path / "out").glob("*.pth"))
    ]
    assert len(parts) == ranks and {name for part in parts for name in part} == set(meta_weights)
    for name, weight in meta_weights.items():
        merged = (
            parts[0][name]
            if axis_of(name) is None
            else torch.cat([part[name] for part in parts], axis_of(name))
        )
        assert merged.dtype == weight.dtype and torch.equal(merged, weight), name


def test_torch_files_that_are_not_row_major_are_refused(meta_weights, tmp_path):
    torch.save({"a": torch.zeros(4, 3).T}, tmp_path / "consolidated.00.pth")
    with pytest.raises(UserError, match="row-major"):
        torch_file.read_pickled(epath.Path(tmp_path / "consolidated.00.pth"))
    torch.save(meta_weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="not a complete file"):
        torch_file.read_pickled(epath.Path(tmp_path / "old.pth"))


def test_training_starts_at_the_loss_of_the_source(tmp_path):
    folder = epath.Path(tmp_path / "hf")
    model = make(folder, **CASES["gqa"])
    _, source = load.open_published(folder)
    stage = toy.stage(
        32,
        8,
        dataclasses.replace(source.model, compute_dtype="float32", remat="none"),
        init=f"hf:{folder}",
    )
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    rows = np.random.default_rng(3).integers(0, 32_000, (8, 33))
    batch = {
        "tokens": rows[:, :-1],
        "targets": rows[:, 1:],
        "segment_ids": np.ones((8, 32)),
        "positions": np.tile(np.arange(32), (8, 1)),
    }
    batch = {k: v.astype(np.int32) for k, v in batch.items()}
    batch["weights"] = np.ones((8, 32), np.float32)
    placed = place(batch, list(range(8)), 8, mesh)
    with torch.inference_mode():
        expected = model(torch.tensor(rows), labels=torch.tensor(rows)).loss.item()
    with on_mesh(mesh):
        state = fresh_state(stage, mesh, load.initial_params(stage, mesh)())
        loss, tokens = compile_eval_step(stage, mesh)(state.params, placed)
        _, metrics = compile_train_step(stage, mesh)(
            state, placed | {"stop": stop_flags(0, 8, mesh)}
        )
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-4)
    assert float(loss / tokens) == pytest.approx(expected, abs=1e-4)


def test_check_against_transformers(tmp_path):
    folder = epath.Path(tmp_path / "hf")
    make(folder, **CASES["bf16"])
    write_tokenizer(published.tokenizer(32_000), 32_016, LONGEST, folder)
    rows = dict(check.compare(folder, None, published.TEXT, 64))
    assert (
        rows["reference"].endswith("in transformers")
        and rows["tokens"] == "64, the same ids in both"
    )
    assert (
        float(rows["largest logit difference"]) < 1e-4
        and rows["same most likely token"] == "64 of 64"
    )
