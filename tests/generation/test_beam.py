import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from characters import Characters
from toy import MODEL, stage

from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation import memory
from codellama_jax.generation.beam import beam_search
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import Rows, complete, complete_each, in_order
from codellama_jax.models.family import family_of
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.training.step import abstract_state

PROMPTS = [[1, 2, 3], [4], [9, 8, 7, 60, 50]]
BEAMS = Sampling(max_new_tokens=12, beams=4, length_penalty=0.0)


def random_model(seed):
    # Sharper than at the start of training, so that the scores of beams differ clearly. Only the
    # head: larger weights inside the layers would amplify rounding, which differs by processor.
    params = jax.tree.map(jnp.asarray, published.random_params(MODEL, seed))
    params["head"] = 4 * params["head"]
    return TrainedModel(MODEL, params, Characters(), "toy")


@pytest.fixture(scope="module")
def model():
    return random_model(0)


def test_one_beam_is_the_samplers_greedy_text(model):
    greedy = dataclasses.replace(BEAMS, beams=1, length_penalty=1.0)
    for stop_ids in ([], [generate(model, PROMPTS, greedy)[1][4]]):
        found = beam_search(model, PROMPTS, greedy, stop_ids)
        assert [beam.ids for [beam] in found] == generate(model, PROMPTS, greedy, stop_ids)

    def suffices(index, ids):
        return len(ids) >= 3 + index

    expected = generate(model, PROMPTS, greedy, stop=suffices)
    found = beam_search(model, PROMPTS, greedy, stop=suffices)
    assert [beam.ids for [beam] in found] == expected
    assert [len(ids) for ids in expected] == [3, 4, 5]


def log_probabilities(model, rows, prompt_length, vocab):
    """Returns the log-probability of the ids after the prompt of each row, without any cache."""
    rows = np.array(rows)
    positions = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    apply = jax.jit(family_of(MODEL).module(MODEL).apply)
    logits = apply({"params": model.params}, rows, positions)[:, prompt_length - 1 : -1]
    log_p = jax.nn.log_softmax(logits[..., :vocab])
    return np.take_along_axis(log_p, rows[:, prompt_length:, None], -1).sum((1, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_beam_that_holds_all_texts_finds_the_most_likely_ones(seed):
    model, prompt, vocab = random_model(seed), [1, 2, 3], 4
    texts = [list(ids) for ids in itertools.product(range(vocab), repeat=3)]
    expected = log_probabilities(model, [prompt + ids for ids in texts], 3, vocab)
    sampling = Sampling(max_new_tokens=3, beams=vocab**2, length_penalty=0.0)
    [found] = beam_search(model, [prompt], sampling, vocab=vocab)
    best = np.argsort(-expected)[: vocab**2]
    assert [beam.ids for beam in found] == [texts[i] for i in best]
    np.testing.assert_allclose([b.log_probability for b in found], expected[best], atol=2e-5)
    assert [beam.score for beam in found] == [beam.log_probability for beam in found]


def test_two_tokens_are_never_less_likely_than_greedy_ones():
    """Of longer texts this need not hold: the beginning of the greedy one may leave the beam."""
    sampling = dataclasses.replace(BEAMS, max_new_tokens=2)
    greedy = dataclasses.replace(sampling, beams=1, length_penalty=1.0)
    gains = []
    for seed in range(3):
        model = random_model(seed)
        prompts = np.random.default_rng(seed).integers(0, 64, (32, 5)).tolist()
        alone = beam_search(model, prompts, greedy, prompts[0][:1])
        for [text], beams in zip(alone, beam_search(model, prompts, sampling, prompts[0][:1])):
            gains.append(beams[0].log_probability - text.log_probability)
            scores = [beam.score for beam in beams]
            assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert min(gains) > -1e-5 and max(gains) > 0.01


def test_beams_depend_neither_on_other_prompts_nor_on_the_mesh(model):
    expected = beam_search(model, PROMPTS, BEAMS)
    [alone] = beam_search(model, PROMPTS[1:2], BEAMS)
    assert [beam.ids for beam in alone] == [beam.ids for beam in expected[1]]
    with on_mesh(make_mesh(MeshConfig(data=2, context=2, tensor=2, fsdp=1))) as mesh:
        shardings = jax.tree.map(lambda a: a.sharding, abstract_state(stage(), mesh).params)
        placed = dataclasses.replace(model, params=jax.device_put(model.params, shardings))
        assert not placed.params["head"].sharding.is_fully_replicated
        on_devices = beam_search(placed, PROMPTS, BEAMS)
    for ours, theirs in zip(expected, on_devices):
        assert [beam.ids for beam in ours] == [beam.ids for beam in theirs]
        np.testing.assert_allclose([b.score for b in ours], [b.score for b in theirs], atol=1e-3)


def test_an_int8_cache_is_reordered_with_its_scales(model):
    """A text has the log-probability that it has alone, where nothing is reordered."""
    compressed = dataclasses.replace(model, kv_cache="int8")
    greedy = dataclasses.replace(BEAMS, beams=1, length_penalty=1.0)
    alone = beam_search(compressed, PROMPTS, greedy)
    among_others = beam_search(compressed, PROMPTS, BEAMS)
    compared = 0
    for [text], beams in zip(alone, among_others):
        for beam in beams:
            if beam.ids == text.ids:
                assert beam.log_probability == pytest.approx(text.log_probability, abs=1e-4)
                compared += 1
    assert compared >= 2


def test_the_first_token_is_one_of_those_named(model):
    first = [np.array([11, 12, 13, 14, 15]), None, np.array([3])]
    found = beam_search(model, PROMPTS, BEAMS, first=first)
    assert {beam.ids[0] for beam in found[0]} <= {11, 12, 13, 14, 15}
    assert {beam.ids[0] for beam in found[2]} == {3} and len(found[2]) == 4
    assert found[1] == beam_search(model, PROMPTS, BEAMS)[1]
    one = dataclasses.replace(BEAMS, max_new_tokens=1)
    assert [len(beams) for beams in beam_search(model, PROMPTS, one, first=first)] == [4, 4, 1]


class Letters:
    """A tokenizer of 64 characters, from `@` on."""

    bos_id, eos_id, vocab_size = 0, 63, 64
    adds_bos = True
    prompt = Tokenizer.prompt

    def encode(self, text):
        return [ord(c) - 64 for c in text]

    def decode(self, ids, leading_space=True):
        return "".join(chr(64 + i) for i in ids)

    def unfinished(self, ids):
        return 0


def test_texts_end_at_stop_strings_and_are_taken_by_rank(model):
    lettered = dataclasses.replace(model, tokenizer=Letters())
    ids = [Letters.bos_id, *Letters().encode("AB")]
    [beams] = beam_search(lettered, [ids], BEAMS, [Letters.eos_id])
    every = [Letters().decode(beam.ids) for beam in beams]
    assert len(set(every)) == 4
    ranks = Rows(lambda index, text: text, [0] * 3, ranks=[2, 0, 3])
    texts = in_order(complete_each(lettered, ["AB"] * 3, BEAMS, rows=ranks))
    assert texts == [every[2], every[0], every[3]]
    stop, pieces = every[0][3:5], []
    [text] = complete(lettered, ["AB"], BEAMS, [stop], stream=pieces.append)
    assert stop not in text and pieces == [text]
    # The search itself knows where a text ends, and ranks it as it is then.
    [ended] = beam_search(
        lettered, [ids], BEAMS, [63], stop=lambda _, new: stop in Letters().decode(new)
    )
    assert text == Letters().decode(ended[0].ids).partition(stop)[0]
    assert any(Letters().decode(beam.ids).endswith(stop) for beam in ended)


def test_beams_that_do_not_fit_in_memory_are_refused(model, monkeypatch):
    beam_search(model, PROMPTS, BEAMS)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    message = r"4 beams of 3 prompts of up to 5 tokens need .* GB are free: use fewer --beams, or"
    with pytest.raises(UserError, match=message):
        beam_search(model, PROMPTS, BEAMS)


def test_only_the_step_may_need_too_much_memory(model, monkeypatch):
    free = iter([10**12, 1000])
    monkeypatch.setattr(memory, "free_bytes", lambda: next(free))
    with pytest.raises(UserError, match="4 beams of 3 prompts"):
        beam_search(model, PROMPTS, BEAMS)
