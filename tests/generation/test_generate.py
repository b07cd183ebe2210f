import dataclasses
import functools
import itertools
import tempfile
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from characters import Characters
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import MODEL, stage

from codellama_jax.config import MeshConfig
from codellama_jax.data.infilling import infill_ids, prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation import infill as infilling
from codellama_jax.generation import memory, sampler
from codellama_jax.generation import text as texts
from codellama_jax.generation.drawing import keep, sample
from codellama_jax.generation.sampler import generate
from codellama_jax.generation.settings import CAPACITY, Sampling
from codellama_jax.models import decoding
from codellama_jax.models.llama.model import Llama
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.tokenizers import byte_bpe
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.training.step import abstract_state

GREEDY = Sampling(max_new_tokens=24)


def params_of(config, seed=0):
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init():
        return nn.unbox(Llama(config).init(jax.random.key(seed), tokens, tokens))["params"]

    return jax.jit(lambda: jax.tree.map(lambda p: 6 * p, init()))()


@pytest.fixture(scope="module")
def toy_model():
    return TrainedModel(MODEL, params_of(MODEL), Characters(), "toy")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a real tokenizer."""
    words = [
        f"def name_{i}(x):\n    return x + {i}\n\n\nclass Thing{i}:\n    é = '日本'\n"
        for i in range(300)
    ]
    tokenizer = tokenizers.train(words, 360, tmp_path_factory.mktemp("tokenizer"))
    config = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    return TrainedModel(config, params_of(config), tokenizer, "toy")


@jax.jit
def last_logits(params, tokens_T, length):
    """Logits after `length` tokens, the whole row read anew."""
    positions = jnp.arange(tokens_T.shape[0])[None]
    return Llama(MODEL).apply({"params": params}, tokens_T[None], positions)[0, length - 1]


def without_cache(params, prompt, count):
    row = np.zeros(64, np.int32)
    row[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + count):
        row[length] = int(jnp.argmax(last_logits(params, row, length)))
    return row[len(prompt) : len(prompt) + count].tolist()


def test_greedy_is_the_same_with_cache_and_without_ragged_or_alone(toy_model):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, n).tolist() for n in (1, 7, 30)]
    expected = [without_cache(toy_model.params, prompt, 24) for prompt in prompts]
    assert generate(toy_model, prompts, GREEDY) == expected
    assert [generate(toy_model, [prompt], GREEDY)[0] for prompt in prompts] == expected
    streamed: list[list[list[int]]] = [[], [], []]
    generate(toy_model, prompts, GREEDY, on_tokens=lambda row, ids: streamed[row].append(list(ids)))
    assert [row[-1] for row in streamed] == expected
    assert [[len(ids) for ids in row] for row in streamed] == [[1, 5, 9, 13, 17, 21, 24]] * 3


def test_parameters_on_a_mesh_give_the_same(toy_model):
    """A batch that does not divide over it included."""
    prompts = [[1, 2, 3]]
    with on_mesh(make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))) as mesh:
        placed = jax.device_put(
            toy_model.params,
            jax.tree.map(lambda a: a.sharding, abstract_state(stage(), mesh).params),
        )
        assert not placed["head"].sharding.is_fully_replicated
        on_devices = generate(dataclasses.replace(toy_model, params=placed), prompts, GREEDY)
    assert on_devices == generate(toy_model, prompts, GREEDY)


def test_weights_are_prepared_once_per_model(monkeypatch):
    model = TrainedModel(MODEL, params_of(MODEL), Characters(), "toy")
    prepare, calls = decoding.prepare, []

    def counted(config, params):
        is_traced = isinstance(jax.tree.leaves(params)[0], jax.core.Tracer)
        calls.append("shapes" if is_traced else "weights")
        return prepare(config, params)

    monkeypatch.setattr(decoding, "prepare", counted)
    assert not model.is_prepared
    first = generate(model, [[1, 2, 3]], GREEDY)
    weights = model.decoding_weights
    assert generate(model, [[1, 2, 3], [4]], GREEDY)[0] == first[0]
    assert model.decoding_weights is weights
    assert calls.count("weights") == 1
    # Another model, as after another stage, has its own weights.
    other = dataclasses.replace(model, params=params_of(MODEL, seed=1))
    assert not other.is_prepared and generate(other, [[1, 2, 3]], GREEDY) != first


def test_a_stop_id_ends_its_row_only(toy_model):
    prompts = [[1, 2, 3], [4, 5]]
    free = generate(toy_model, prompts, GREEDY)
    stop = free[0][5]
    stopped = generate(toy_model, prompts, GREEDY, [stop])
    for before, after in zip(free, stopped):
        assert after == (before[: before.index(stop)] if stop in before else before)


def test_a_row_ends_with_the_token_that_is_enough(toy_model):
    """Wherever chunks begin and end; the other row goes on."""
    free = generate(toy_model, [[1, 2, 3], [4, 5]], GREEDY)
    for enough in range(1, 25):
        for on_tokens in (None, lambda row, ids: None):

            def stop(row, ids, enough=enough):
                return row == 0 and len(ids) >= enough

            stopped = generate(
                toy_model, [[1, 2, 3], [4, 5]], GREEDY, stop=stop, on_tokens=on_tokens
            )
            assert stopped == [free[0][:enough], free[1]]


@pytest.mark.parametrize(
    "prompt, wrong",
    [([], "0 tokens"), ([1] * CAPACITY, f"{CAPACITY} tokens"), ([1, 64], "ids from 1 to 64")],
)
def test_a_prompt_that_cannot_be_read_is_named(toy_model, prompt, wrong):
    with pytest.raises(UserError, match=f"prompt 1 has {wrong}"):
        generate(toy_model, [[1], prompt], GREEDY)


def test_ids_that_pad_the_vocabulary_are_never_drawn(toy_model):
    ids = generate(toy_model, [[1]], Sampling(temperature=50.0, max_new_tokens=200), vocab=10)[0]
    assert max(ids) == 9


def test_draws_follow_the_softmax():
    from scipy import stats

    logits = jnp.array([2.0, 1.0, 0.0, -1.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = sample(jnp.broadcast_to(logits, (20_000, 5)), Sampling(temperature=0.7), keys)
    weights = np.exp(np.asarray(logits, np.float64) / 0.7)
    assert (
        stats.chisquare(np.bincount(draws, minlength=5), 20_000 * weights / weights.sum()).pvalue
        > 0.01
    )


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, {0, 1, 2, 3}),
        (2, 1.0, {1, 3}),
        (0, 0.5, {1}),
        (0, 0.55, {1, 3}),
        (3, 0.95, {0, 1, 3}),
    ],
)
def test_top_k_and_top_p_keep_exactly(top_k, top_p, kept):
    """Of probabilities .15 .51 .09 .25 a token stays while those before it hold at most top_p."""
    logits = jnp.log(jnp.array([0.15, 0.51, 0.09, 0.25]))
    keys = jax.random.split(jax.random.key(1), 2000)
    drawn = sample(jnp.broadcast_to(logits, (2000, 4)), Sampling(1.0, top_k, top_p), keys)
    assert set(np.asarray(drawn).tolist()) == kept


@pytest.mark.parametrize("top_k", [0, 1, 5, 40])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_what_is_kept_is_what_sorting_keeps(top_k, top_p):
    """Equally likely tokens together; top-k first, then the mass of what it left."""
    logits_BV = np.random.default_rng(top_k).integers(-30, 30, (500, 20)) * 0.1
    rank_BV = (logits_BV[:, None] > logits_BV[..., None]).sum(-1)
    left_BV = (rank_BV < top_k) | (top_k == 0)
    p_BV = np.where(left_BV, np.exp(logits_BV), 0)
    p_BV /= p_BV.sum(-1, keepdims=True)
    before_BV = ((p_BV[:, None] > p_BV[..., None]) * p_BV[:, None]).sum(-1)
    kept_BV = np.asarray(keep(jnp.array(logits_BV, jnp.float32), top_k, top_p))
    clear_BV = (np.abs(before_BV - top_p) > 1e-6) | (
        top_p == 1
    )  # nearer than that fp32 may decide either way
    assert clear_BV.mean() > 0.9
    assert (kept_BV == (left_BV & (before_BV < top_p + 1e-9)))[clear_BV].all()


def test_a_sample_does_not_depend_on_its_companions(toy_model):
    hot = Sampling(temperature=1.0, max_new_tokens=16, seed=3)
    alone = generate(toy_model, [[5, 6]], hot)
    assert generate(toy_model, [[5, 6], [7, 8, 9]], hot)[0] == alone[0]
    assert generate(toy_model, [[5, 6]], dataclasses.replace(hot, seed=4)) != alone


def test_completion_stops_at_a_string_wherever_it_falls(model):
    prompt = "def name_1(x):\n"
    whole = texts.complete(model, [prompt], Sampling(max_new_tokens=32))[0]
    assert len(whole) > 8
    for start in range(0, len(whole) - 3, 3):
        stop = whole[start : start + 3]
        pieces: list[str] = []
        text = texts.complete(model, [prompt], Sampling(max_new_tokens=32), (stop,), pieces.append)[
            0
        ]
        assert text == whole[: whole.index(stop)] == "".join(pieces)


PIECES = st.sampled_from("ab€😀\ufffd")


@given(
    st.text(PIECES),
    st.lists(st.text(PIECES, min_size=1, max_size=4), max_size=2),
    st.lists(st.integers(0, 40)),
)
def test_pieces_of_a_stream_join_to_the_text_before_a_stop_string(text, stop_strings, cuts):
    """The text grows up to the first update with a stop string: its token ends the sequence."""
    pieces: list[str] = []
    stream = texts.Stream(pieces.append, stop_strings)
    looks = [text[:cut] for cut in [*sorted(cuts), len(text)]]
    ended = [look for look in looks if texts.until(look, stop_strings) != look]
    whole = ended[0] if ended else text
    for look in looks[: looks.index(whole) + 1]:
        stream.update(look)
        assert texts.until(whole, stop_strings).startswith("".join(pieces))
    stream.finish(texts.until(whole, stop_strings))
    assert "".join(pieces) == texts.until(whole, stop_strings)


def test_a_stop_string_that_is_longer_than_the_text_takes_no_time():
    start = time.process_time()
    pieces: list[str] = []
    texts.Stream(pieces.append, [1_000_000 * "x"]).update("axx")
    assert pieces == ["a"] and time.process_time() - start < 1


@functools.cache
def byte_level():
    """Returns byte-level BPE with an entry for U+FFFD and one for a space before a part of it."""
    with tempfile.TemporaryDirectory() as folder:
        lines = ["x\ufffd y\ufffd\n" * 50, " é è ê ë\n" * 50]
        return byte_bpe.train(lines, 270, "gpt2", folder)


def shown_texts(tokenizer, ids):
    """Returns the text that is shown after each number of ids."""

    def decode(ids):
        return tokenizer.decode(ids, leading_space=False)

    lengths = range(len(ids) + 1)
    return [texts.whole_characters(decode, ids[:n], tokenizer.unfinished) for n in lengths]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab é€😀\ufffd\uffef▁\n")))
def test_no_part_of_a_character_is_shown(model, text):
    """Of a text whose tokens come one by one; most tokens of these characters are bytes."""
    for tokenizer in (model.tokenizer, byte_level()):
        shown = shown_texts(tokenizer, tokenizer.encode(text, leading_space=False))
        assert shown[-1] == text
        assert all(text.startswith(part) for part in shown)


@settings(deadline=None)
@given(st.data())
def test_what_was_shown_stays(model, data):
    """Whatever ids a model draws, sentinels and stray bytes too."""
    for tokenizer in (model.tokenizer, byte_level()):
        any_id = st.integers(0, tokenizer.vocab_size - 1)
        shown = shown_texts(tokenizer, data.draw(st.lists(any_id | st.integers(3, 258))))
        assert all(after.startswith(before) for before, after in itertools.pairwise(shown))


def test_an_entry_with_the_start_of_a_character_shows_what_precedes_it():
    tokenizer = byte_level()
    replacement = tokenizer.encode("\ufffd")
    begun = tokenizer.encode(" ï")[:1]
    assert len(replacement) == 1 and tokenizer.token_bytes(begun[0]) == b" \xc3"
    assert shown_texts(tokenizer, [*replacement, *begun]) == ["", "\ufffd", "\ufffd "]


def test_an_unfinished_character_at_the_end_is_left_out(model, monkeypatch):
    ids = model.tokenizer.encode("x = '語", leading_space=False)[:-1]
    monkeypatch.setattr(texts, "generate_each", lambda *args, **kwargs: [(0, ids)])
    assert texts.complete(model, ["a"], GREEDY) == ["x = '"]


@pytest.mark.parametrize("prefix", ["", "def name", "    x =", "a b "])
def test_spm_goes_on_from_the_prefix(model, prefix):
    """What training would show after the prompt decodes to the middle, in both formats."""
    tokenizer, middle, suffix = model.tokenizer, "_2(x):\n    é", "\nreturn"
    for spm in (False, True):
        ids = infill_ids(tokenizer, prefix, middle, suffix, spm)
        prompt = prompt_ids(tokenizer, prefix, suffix, spm)
        if (
            ids[: len(prompt)] != prompt
        ):  # in SPM a token may join prefix and middle: then this split cannot be generated
            assert spm
            continue
        decode = (
            texts.continuation(model, [prefix])
            if spm
            else lambda row, new: tokenizer.decode(new, leading_space=False)
        )
        assert decode(0, ids[len(prompt) : -1]) == middle


def test_infilling_generates_in_both_formats(model):
    pairs = [("def a(x):\n", "\n"), ("", "return 1"), ("x = ", "")]
    for spm in (False, True):
        middles = infilling.infill(model, pairs, Sampling(max_new_tokens=8), spm)
        assert len(middles) == 3
        assert middles[0] == infilling.infill(model, pairs[:1], Sampling(max_new_tokens=8), spm)[0]


def test_a_model_without_sentinels_cannot_infill(model):
    plain = dataclasses.replace(
        model, config=dataclasses.replace(model.config, vocab_size=model.tokenizer.pieces)
    )
    with pytest.raises(UserError, match="toy was trained without infilling"):
        infilling.infill(plain, [("a", "b")], GREEDY)


def test_a_prompt_that_does_not_fit_in_memory_is_refused_with_the_numbers(model, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1_000_000)
    with pytest.raises(
        UserError, match=r"1,000 tokens needs \d\.\d\d GB .* and 0\.00 GB are free: s"
    ):
        generate(model, [[1] * 1000], GREEDY)
    # Prompts that do not fit together are read one by one.
    monkeypatch.setattr(memory, "free_bytes", lambda: 1_200_000)
    with pytest.raises(UserError, match=r"a prompt of 1,000 tokens needs"):
        generate(model, [[1] * 1000, [2] * 1000, [3] * 1000], GREEDY)
    monkeypatch.setattr(memory, "free_bytes", lambda: 100_000)
    problem = r"the cache of 2 sequences of up to 1,024 tokens needs .* fewer at once"
    with pytest.raises(UserError, match=problem):
        generate(model, [[1] * 1000, [1]], GREEDY)
    unprepared = dataclasses.replace(model)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(
        UserError, match=r"the weights in the layout for decoding need .* --mesh.fsdp"
    ):
        generate(unprepared, [[1]], GREEDY)
    assert not unprepared.is_prepared


def test_free_memory_is_at_most_what_the_container_leaves(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    host = memory.free_bytes()
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 500000\n")
    assert host > memory.free_bytes() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() > 2_000_000


@pytest.mark.parametrize("extra, text", [(0, "1, 2"), (1, "1, 2)\nfoo")])
def test_an_infill_that_does_not_end_is_truncated_and_streamed_so(model, monkeypatch, extra, text):
    """With a token less than the limit the model has ended it, and all of it is kept."""
    ids = model.tokenizer.encode("1, 2" + (")\nfoo" if extra else "\nfoo"), leading_space=False)

    def generate_each(*args, on_tokens, **kwargs):
        for length in range(1, len(ids) + 1):
            on_tokens(0, ids[:length])
        yield 0, ids

    monkeypatch.setattr(texts, "generate_each", generate_each)
    pieces: list[str] = []
    sampling = Sampling(max_new_tokens=len(ids) + extra)
    middle = infilling.infill_one(model, "x = f(", ")\n", sampling, stream=pieces.append)
    assert middle == (text, bool(extra))
    assert "".join(pieces) == text


@pytest.mark.parametrize("stop", ["", "x"])
def test_an_empty_stop_string_is_refused(model, stop):
    if stop:
        texts.complete(model, ["a"], Sampling(max_new_tokens=2), (stop,))
    else:
        with pytest.raises(UserError, match="--stop is '': it must be text of at least one"):
            texts.complete(model, ["a"], GREEDY, (stop,))


def test_a_healed_completion_continues_the_removed_characters(model):
    """Each text with its prompt is one that begins with the prompt, as the first token must."""
    prompts = ["def nam", "class Thi", "", "x"]
    healed = texts.complete(model, prompts, Sampling(max_new_tokens=4), healing=True)
    plain = texts.complete(model, prompts, Sampling(max_new_tokens=4))
    assert len(healed) == 4 and healed[2] == plain[2]


@pytest.mark.parametrize(("slots", "used"), [(0, 4), (2, 2), (64, 4)])
def test_no_slot_is_computed_without_a_sequence(monkeypatch, slots, used):
    made = []

    class Recorded:
        def __init__(self, model, slots, vocab):
            made.append(slots)

        def each(self, requests):
            return iter([(index, []) for index in range(len(requests))])

    monkeypatch.setattr(sampler, "Engine", Recorded)
    generate(None, [[1], [2], [3]], GREEDY, slots=slots)
    assert made == [used]
