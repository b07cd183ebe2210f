"""Beam search against transformers' on the same weights. Needs the extra `oracle`."""

import dataclasses
import itertools

import jax
import numpy as np
import published
import pytest
from etils import epath

from codellama_jax.config import MeshConfig
from codellama_jax.generation.beam import beam_search
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.weights import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

ROWS = published.PIECES + 16
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CASES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
}
PROMPTS = [[5, 17, 300, 8], [42, 7]]
NEW = 12


@pytest.fixture(scope="module", params=CASES)
def models(request, tmp_path_factory):
    """A random model of transformers', and the same weights read."""
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    model_class, config_class, sizes = CASES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(vocab_size=ROWS, initializer_range=0.4, **sizes)
    theirs = getattr(transformers, model_class)(config).eval()
    theirs.save_pretrained(folder)
    published.tokenizer().save(folder / "tokenizer.model")
    _, source = load.open_published(folder)
    exact = dataclasses.replace(source.model, compute_dtype="float32", remat="none")
    params = load.place_params(source, exact, make_mesh(MeshConfig(), jax.devices()[:1]))
    return TrainedModel(exact, params, published.tokenizer(), request.param), theirs


def searched(theirs, prompt, beams, penalty=1.0, stop_id=None):
    """Returns transformers' rows of new ids, padded with -1, and their scores."""
    with torch.inference_mode():
        out = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=NEW,
            length_penalty=penalty,
            early_stopping=False,
            eos_token_id=stop_id,
            pad_token_id=-1,
            output_scores=True,
            return_dict_in_generate=True,
        )
    return [row[len(prompt) :] for row in out.sequences.tolist()], out


def test_beams_scores_and_ends_are_transformers(models):
    model, theirs = models
    free = beam_search(model, PROMPTS, Sampling(max_new_tokens=NEW, beams=4))
    # Without a stop id, and with one that good continuations hold early.
    stop_ids, ended = (None, free[0][0].ids[5]), 0
    for penalty, stop_id in itertools.product((0.0, 1.0, 1.6), stop_ids):
        sampling = Sampling(max_new_tokens=NEW, beams=4, length_penalty=penalty)
        ours = beam_search(model, PROMPTS, sampling, [] if stop_id is None else [stop_id])
        for prompt, beams in zip(PROMPTS, ours):
            rows, out = searched(theirs, prompt, 4, penalty, stop_id)
            scores = [beam.score for beam in beams]
            np.testing.assert_allclose(scores, out.sequences_scores.numpy(), atol=1e-4, rtol=0)
            for beam, row in zip(beams, rows, strict=True):
                end = len(beam.ids)
                assert row[:end] == beam.ids and set(row[end:]) <= {stop_id, -1}
                ended += end < NEW
    assert ended >= 4


def test_one_beam_is_transformers_greedy_search(models):
    model, theirs = models
    ours = beam_search(model, PROMPTS, Sampling(max_new_tokens=NEW))
    for prompt, [beam] in zip(PROMPTS, ours):
        [row], out = searched(theirs, prompt, 1)
        assert row == beam.ids
        log_p = theirs.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        assert beam.log_probability == pytest.approx(float(log_p.sum()), abs=1e-4)
        assert beam.score == pytest.approx(float(log_p.mean()), abs=1e-4)
