"""Sequences that join and leave a batch have the ids that they have alone."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from characters import Characters
from flax import linen as nn
from toy import MODEL

from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation import device, memory
from codellama_jax.generation import slots as programs
from codellama_jax.generation.device import fitting_slots
from codellama_jax.generation.drafts import PromptLookup
from codellama_jax.generation.drawing import keep
from codellama_jax.generation.engine import Engine
from codellama_jax.generation.requests import Request, Running, groups
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.family import boxed_params
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.trained import TrainedModel, abstract_params
from codellama_jax.sharding.mesh import make_mesh

GPT = GPTConfig(
    64, 32, 2, 4, 1, 8, 64, compute_dtype="float32", remat="none", n_positions=128, init_std=0.1
)
# One of the families with an int8 cache.
MODELS = {"llama": (MODEL, "none"), "gpt": (GPT, "int8")}
SLOTS = 4


def model_of(config, kv_cache: str) -> TrainedModel:
    params = jax.jit(lambda: nn.unbox(boxed_params(config, jax.random.key(0))))()
    params = jax.tree.map(lambda a: 4 * a, params)
    return TrainedModel(config, params, Characters(), "toy", kv_cache)


@pytest.fixture(scope="module")
def models() -> dict[str, TrainedModel]:
    return {name: model_of(*arguments) for name, arguments in MODELS.items()}


@pytest.fixture(scope="module", params=MODELS)
def model(request, models) -> TrainedModel:
    return models[request.param]


@pytest.fixture(scope="module")
def llama(models) -> TrainedModel:
    return models["llama"]


def mixture(count: int) -> list[Request]:
    """Returns requests of every kind; some share a prompt, with other settings and numbers."""
    rng = np.random.default_rng(3)
    # The first one has every setting, so that one program of each kind is compiled.
    samplings = [
        Sampling(1.0, 7, 0.9, 30, seed=6),
        Sampling(0.0, 0, 1.0, 24),
        Sampling(0.8, 0, 0.95, 17, seed=5),
        Sampling(2.0, 3, 1.0, 1),
    ]
    prompts = [rng.integers(3, 64, length).tolist() for length in (1, 5, 34, 12, 30, 33)]
    requests = []
    for number in range(count):
        enough, most = int(rng.integers(3, 40)), int(rng.integers(2, 30)) if number % 6 else 1

        def suffices(ids, enough=enough):
            return len(ids) >= enough

        requests.append(
            Request(
                prompts[int(rng.integers(len(prompts)))],
                dataclasses.replace(samplings[number % 4], max_new_tokens=most),
                [9, 30] if number % 3 == 0 else [],
                suffices if number % 5 == 0 else None,
                number=number,
                first=np.array([4, 8, 15]) if number % 7 == 0 else None,
            )
        )
    return requests


@pytest.fixture(scope="module")
def alone(model) -> list[list[int]]:
    """The ids of each request, generated one after the other."""
    engine = Engine(model, SLOTS)
    return [engine.run([request])[0] for request in mixture(20)]


def test_requests_that_join_and_leave_have_the_ids_that_they_have_alone(model, alone):
    requests, rng = mixture(20), np.random.default_rng(0)
    engine, new = Engine(model, SLOTS), {}
    lengths = {len(ids) for ids in alone}
    assert len(lengths) > 8 and min(lengths) <= 1
    waiting = list(range(20))
    finished = []
    while waiting or not engine.is_idle:
        # They arrive a few at a time, while others are being decoded.
        for index in waiting[: int(rng.integers(4))]:
            new[engine.submit(requests[index])] = []
        waiting = waiting[len(new) - (20 - len(waiting)) :]
        for update in engine.advance():
            new[update.request] += update.ids
            if update.is_finished:
                finished.append(update.request)
    assert [new[index] for index in range(20)] == alone
    assert sorted(finished) == list(range(20)) != finished


def test_few_or_short_sequences_are_decoded_apart(model, alone, monkeypatch):
    decode, widths, lengths = programs.decode, set(), set()

    def noted(config, weights, state, draws, done_B, steps, most_done, slots_N, length):
        running = set(np.flatnonzero(~done_B))
        assert slots_N is None or running <= set(slots_N)
        widths.add((len(running), 16 if slots_N is None else len(slots_N)))
        lengths.add(length)
        return decode(config, weights, state, draws, done_B, steps, most_done, slots_N, length)

    monkeypatch.setattr(programs, "decode", noted)
    engine, requests, new = Engine(model, 16, least=128), mixture(20), []
    assert engine.widths == (1, 4, 16)
    for group in (requests[:2], requests[2:3], requests[3:6], requests[6:]):
        new += engine.run(group)
    assert new == alone
    assert {width for _, width in widths} == {1, 4, 16} and lengths == {0, 32, 128}
    # None is wider than it needs to be.
    for running, width in widths:
        assert width == min(size for size in engine.widths if size >= running)


def test_samples_of_one_prompt_read_it_once(llama, monkeypatch):
    read, lengths = programs.read, []

    def counted(config, kv_cache, weights, state, tokens_RT, lengths_R, slots_R):
        lengths.extend(lengths_R[slots_R < SLOTS].tolist())
        return read(config, kv_cache, weights, state, tokens_RT, lengths_R, slots_R)

    counted.lower = read.lower
    monkeypatch.setattr(programs, "read", counted)
    hot = Sampling(1.0, 20, 0.99, max_new_tokens=12)
    requests = []
    for prompt in ([5, 6, 7], [8, 9]):
        requests += [Request(prompt, hot, [3], number=number) for number in range(11)]
    engine = Engine(llama, SLOTS)
    new = engine.run(requests)
    assert lengths == [3, 2] and engine.counts["prompts read"] == 2
    assert 0 < engine.counts["prompts copied"] < 20
    assert len({tuple(ids) for ids in new}) > 15


def test_a_cancelled_request_frees_its_slot_and_changes_no_other(model, alone):
    requests = mixture(20)
    engine, new = Engine(model, SLOTS), {}
    for request in requests:
        new[engine.submit(request)] = []
    cancelled = set()
    while not engine.is_idle:
        for update in engine.advance():
            assert update.request not in cancelled
            new[update.request] += update.ids
        # One that runs and one that waits.
        running, waiting = list(engine._running.values())[:1], list(engine._waiting)[-1:]
        for sequence in (*running, *waiting):
            if len(cancelled) < 6:
                assert engine.cancel(sequence.id)
                cancelled.add(sequence.id)
    assert len(cancelled) == 6 and not engine.cancel(0) and not engine.cancel(99)
    for index, ids in new.items():
        expected = alone[index]
        assert ids == (expected[: len(ids)] if index in cancelled else expected)


def test_a_mesh_gives_the_ids_of_one_device(llama):
    """With slots over `data`; that `generate` runs on the other axes is tested beside it."""
    mesh = make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    shapes = abstract_params(MODEL, mesh)
    placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), llama.params, shapes)
    engine = Engine(dataclasses.replace(llama, params=placed), SLOTS - 1)
    assert engine.slots == SLOTS
    requests = mixture(10)
    assert engine.run(requests) == Engine(llama, SLOTS).run(requests)


def test_the_cache_grows_and_shrinks_with_the_requests(llama):
    short = Sampling(1.0, 20, 0.99, max_new_tokens=8)
    engine, long = Engine(llama, SLOTS), dataclasses.replace(short, max_new_tokens=20)
    expected = engine.run([Request([1, 2, 3], short)])
    assert engine._device.capacity == 64
    names = [engine.submit(Request([7] * 150, long)), engine.submit(Request([1, 2, 3], long))]
    new = {name: [] for name in names}
    while not engine.is_idle:
        for update in engine.advance():
            new[update.request] += update.ids
    assert engine._device.capacity == 192 and new[names[1]][:8] == expected[0]
    assert engine.run([Request([1, 2, 3], short)]) == expected and engine._device.capacity == 64


def test_prompts_of_similar_length_are_read_together():
    def sequences(*lengths):
        sampling = Sampling(max_new_tokens=1)
        return [(Running(n, Request([1] * n, sampling)), n) for n in lengths]

    def read(*lengths, shards=1):
        return [[slot for _, slot in group] for group in groups(sequences(*lengths), shards)]

    assert read(3, 60, 20) == [[60, 20, 3]]
    assert read(3, 60) == [[60], [3]]
    assert read(3, 60, shards=2) == [[60, 3]]
    assert read(8000, 100, 90, 80) == [[8000], [100, 90, 80]]
    assert read(*[9000] * 5) == [[9000]] * 5
    assert [len(group) for group in read(*[60] * 70)] == [64, 4, 1, 1]


def test_memory_that_does_not_suffice_drops_the_request_alone(llama, monkeypatch):
    engine, short = Engine(llama, SLOTS), Sampling(1.0, 20, 0.99, max_new_tokens=8)
    expected = engine.run([Request([1, 2, 3], short)])
    first = engine.submit(Request([1, 2, 3], short, on_tokens=lambda ids: None))
    new = [update.ids for update in engine.advance()]
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    engine.submit(Request([5] * 500, short))
    after = engine.submit(Request([7, 8], short))
    with pytest.raises(UserError, match=r"the cache of 4 sequences of up to 508 tokens needs"):
        engine.advance()
    other = []
    while not engine.is_idle:
        for update in engine.advance():
            assert update.request in (first, after)
            (new if update.request == first else other).append(update.ids)
    assert [list(itertools.chain(*new))] == expected
    assert len(list(itertools.chain(*other))) == 8


def test_slots_are_halved_until_they_fit_in_memory(llama, monkeypatch):
    # A sequence of 64 tokens has 2 layers x 2 x 2 heads x 64 x 8 fp32 numbers, and 64 logits.
    size = 4 * (2 * 2 * 2 * 64 * 8 + 64) + 8
    monkeypatch.setattr(device, "free_bytes", lambda: 20 * size)
    assert [fitting_slots(llama, slots, 60) for slots in (1, 8, 16, 256)] == [1, 8, 8, 8]
    monkeypatch.setattr(device, "free_bytes", lambda: 1)
    assert fitting_slots(llama, 16, 60) == 1


def test_settings_of_a_row_keep_what_they_keep_alone():
    logits_BV = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    top_k, top_p = np.array([0, 1, 5, 5, 0, 60]), np.array([0.7, 1.0, 0.5, 1.0, 1.0, 0.9])
    kept_BV = np.asarray(jax.jit(keep)(logits_BV, top_k, top_p))
    for row in range(6):
        alone_BV = jax.jit(keep)(logits_BV[row : row + 1], top_k[row], top_p[row])
        np.testing.assert_array_equal(kept_BV[row], alone_BV[0])
    counts = kept_BV.sum(axis=1)
    assert counts[[1, 3, 4]].tolist() == [1, 5, 50]
    assert 0 < counts[0] < counts[5] < 50 and 0 < counts[2] < 5


LONG = np.random.default_rng(5).integers(3, 64, 60).tolist()


def families() -> list[Request]:
    """Returns requests whose prompts share beginnings of several lengths."""
    hot = Sampling(1.0, 20, 0.99, max_new_tokens=4)
    prompts = [
        LONG[:34],
        [*LONG[:34], 5, 6],
        LONG[:50],
        [*LONG[:30], *[9] * 5],
        [*LONG[:30], *[9] * 5],
        LONG[:20],
        [8] * 20,
    ]
    return [Request(prompt, hot, number=number) for number, prompt in enumerate(prompts)]


def test_shared_beginnings_are_read_once_and_change_no_ids(llama):
    requests, engines = families(), []
    for is_shared in (False, True):
        engines.append(Engine(llama, SLOTS, prefix_cache=is_shared))
    expected = [engines[0].run([request])[0] for request in requests]
    assert engines[1].run(requests) == expected == engines[0].run(requests)
    # The first beginning, and what follows it: 34 + 2 + 16 + 5 + 1, and the last prompt.
    assert engines[1].counts["prompt tokens read"] == 34 + 2 + 16 + 5 + 1 + 20
    total = sum(len(request.prompt) for request in requests)
    assert engines[1].counts["prompt tokens reused"] == total - 78
    # A conversation: the next prompt continues the last one and its answer.
    following = [*requests[-1].prompt, *expected[-1], 4, 5]
    engines[1].counts.clear()
    again = Request(following, requests[0].sampling)
    assert engines[1].run([again]) == engines[0].run([again])
    assert engines[1].counts["prompt tokens read"] == 3


def test_a_long_prompt_is_read_in_pieces_while_others_stream(llama):
    streamed = Request([5, 6], Sampling(1.0, max_new_tokens=40), on_tokens=len)
    long = Request(LONG[:56], Sampling(1.0, 20, 0.99, 6), number=3)
    short = Request([7, 8], Sampling(1.0, max_new_tokens=4), number=4)
    alone = Engine(llama, SLOTS)
    expected = [alone.run([request])[0] for request in (streamed, long, short)]
    engine, new = Engine(llama, SLOTS, piece=16), {0: [], 1: [], 2: []}
    engine.submit(streamed)
    turns = {}
    for turn in range(40):
        for update in engine.advance():
            new[update.request] += update.ids
            if update.ids:
                turns.setdefault(update.request, set()).add(turn)
        if turn == 0:
            engine.submit(long)
            engine.submit(short)
    assert [new[index] for index in range(3)] == expected and engine.is_idle
    # The stream goes on in every turn. The short prompt waits for one piece, not for all four.
    assert turns[0] == set(range(10)) and min(turns[1]) == 4 and min(turns[2]) == 2
    # The memory of a piece is checked, not that of the prompt.
    assert max(length for _, _, length, _ in engine._device._checked) == 64


def test_drafts_change_no_ids(model, alone):
    requests = mixture(20)
    drafter = PromptLookup(3)
    engine = Engine(dataclasses.replace(model, drafter=drafter), SLOTS)
    assert engine.run(requests) == alone
    # Greedy text of a random model repeats itself.
    greedy = [Request([token], Sampling(max_new_tokens=60)) for token in range(3, 11)]
    expected = Engine(model, SLOTS).run(greedy)
    engine.counts.clear()
    assert engine.run(greedy) == expected
    assert drafter.drafted > drafter.accepted > 0 and drafter.drawn > drafter.steps
    assert f"{drafter.accepted:,} of {drafter.drafted:,} tokens accepted" in drafter.report()
