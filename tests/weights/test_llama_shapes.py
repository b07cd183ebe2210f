"""Llama-shaped models of today against transformers. Needs the extra `oracle`.

Each case has features that Llama 2 lacks, on a random model of two layers.
"""

import dataclasses
import json

import byte_bpe_cases
import jax
import numpy as np
import pytest
from etils import epath

from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.scoring import document_losses
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.accounting import parameter_count
from codellama_jax.models.family import family_of
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import commands, load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

ROWS = byte_bpe_cases.PIECES + 4  # the largest of the vocabularies; in others some are padding
LENGTH = 48  # tokens of a prompt, and then 64 more: both sides of ORIGINAL
ORIGINAL = 32
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
CASES = {
    # As Llama 3.2: a tied head; and heads wider than d_model / heads.
    "llama3": {
        "family": "llama_3",
        "rope_scaling": LLAMA3,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
    "dynamic": {
        "family": "smollm2",
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": ORIGINAL,
        "attention_bias": True,
    },
    # As Qwen2.5-0.5B: biases of q, k and v, a tied head; and one key head.
    "qwen2": {
        "family": "qwen",
        "kind": "Qwen2",
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
    },
}


def make(folder, family, kind="Llama", **config):
    """Saves a random model, all of its weights far from their initial values."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": ROWS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "initializer_range": 0.18,
        "max_position_embeddings": 256,
    }
    made = getattr(transformers, f"{kind}Config")(**{**sizes, **config})
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # biases and norms
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    byte_bpe_cases.write_family(folder, family)


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def their_logits(folder, ids_BT):
    """Returns logits of a fresh model: one with dynamic RoPE depends on what it has read before."""
    with torch.inference_mode():
        return theirs(folder)(torch.tensor(ids_BT)).logits.numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A folder with a model of transformers, imported and exported, and our model and logits."""
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    make(folder / "hf", **CASES[request.param])
    commands.Import(str(folder / "hf"), str(folder / "run"))()
    commands.Export(str(folder / "run"), str(folder / "out"), "hf")()
    model = load_run(str(folder / "run"))
    exact = dataclasses.replace(model.config, compute_dtype="float32", remat="none")
    model = dataclasses.replace(model, config=exact)
    return folder, model, jax.jit(family_of(exact).module(exact).apply)


def ids(rows, length):
    return np.random.default_rng(rows).integers(0, byte_bpe_cases.PIECES, (rows, length))


def test_logits_are_transformers(case):
    folder, model, apply = case
    ids_BT = ids(2, LENGTH)
    positions_BT = np.tile(np.arange(LENGTH), (2, 1))
    ours_BTV = apply({"params": model.params}, ids_BT, positions_BT)
    theirs_BTV = their_logits(folder / "hf", ids_BT)
    assert theirs_BTV.std() > 0.5
    # Padding of the vocabulary was dropped.
    kept_BTV = theirs_BTV[..., : model.config.vocab_size]
    np.testing.assert_allclose(ours_BTV, kept_BTV, atol=1e-4, rtol=0)


def test_export_is_the_original_bit_for_bit(case):
    folder, model, _ = case
    ids_BT = ids(1, LENGTH)
    V = model.config.vocab_size
    np.testing.assert_array_equal(
        their_logits(folder / "out", ids_BT), their_logits(folder / "hf", ids_BT)[..., :V]
    )
    before, after = (json.loads((folder / f / "config.json").read_text()) for f in ("hf", "out"))
    assert before["model_type"] == after["model_type"]
    assert before["max_position_embeddings"] == after["max_position_embeddings"]
    reread = load.open_published(folder / "out")[1].model
    assert dataclasses.replace(model.config, compute_dtype="bfloat16", remat="full") == reread


def test_greedy_generation_token_for_token(case):
    folder, model, _ = case
    prompt = ids(1, LENGTH)[0].tolist()
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        expected = theirs(folder / "hf").generate(torch.tensor([prompt]), **options)
    if model.config.attention_bias != "none":
        mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
        model = load_run(str(folder / "run"), mesh=mesh)
    # Beside another prompt, which must not change it.
    beside = [prompt, prompt[:5]]
    assert generate(model, beside, Sampling(max_new_tokens=64))[0] == expected[0, LENGTH:].tolist()


def test_the_exported_tokenizer_has_the_ids_of_the_original(case):
    folder, model, _ = case
    text = byte_bpe_cases.TEXTS[0][:2000] + "  x = 12345\n\n"
    before, after = map(transformers.AutoTokenizer.from_pretrained, (folder / "hf", folder / "out"))
    assert before(text)["input_ids"] == after(text)["input_ids"] == model.tokenizer.prompt(text)
    assert (before.bos_token or before.eos_token, before.eos_token) == (
        after.bos_token,
        after.eos_token,
    )


def test_losses_of_padded_documents_are_transformers(case):
    """Documents of 48 and 20 tokens are padded to one length, which must not count."""
    folder, model, _ = case
    documents = [ids(1, LENGTH)[0].tolist(), ids(2, 20)[1].tolist()]
    for document, losses in zip(documents, document_losses(model, documents)):
        logits_TV = torch.tensor(their_logits(folder / "hf", [document[:-1]])[0])
        kept_TV = logits_TV[:, : model.config.vocab_size]
        expected = torch.nn.functional.cross_entropy(
            kept_TV, torch.tensor(document[1:]), reduction="none"
        )
        np.testing.assert_allclose(losses, expected, atol=2e-4)


def test_parameters_are_counted(case):
    _, model, _ = case
    assert parameter_count(model.config) == sum(a.size for a in jax.tree.leaves(model.params))


def test_packed_documents_are_as_alone(case):
    _, model, apply = case
    longer, shorter = ids(2, LENGTH)[:, :40], ids(2, LENGTH)[1, :8]
    tokens = np.zeros((2, 2, LENGTH), int)  # packed or alone; row
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for place, start, document in (((0, 0), 0, longer[0]), ((0, 0), 40, shorter)):
        write(tokens[place], segments[place], positions[place], start, document)
    for row, document in enumerate((longer[0], shorter)):
        write(tokens[1, row], segments[1, row], positions[1, row], 0, document)
    packed_BTV, alone_BTV = (
        apply({"params": model.params}, tokens[i], positions[i], segments[i]) for i in (0, 1)
    )
    np.testing.assert_allclose(packed_BTV[0, :40], alone_BTV[0, :40], atol=1e-4)
    np.testing.assert_allclose(packed_BTV[0, 40:], alone_BTV[1, :8], atol=1e-4)


def write(tokens_T, segments_T, positions_T, start, document):
    """Writes a document into a sequence from `start` on, as its own segment."""
    end = start + len(document)
    tokens_T[start:end] = document
    segments_T[start:end] = start + 1
    positions_T[start:end] = np.arange(len(document))
