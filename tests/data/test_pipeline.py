"""Sequences as a function of the step: complete, the same on any hosts and after resuming."""

import collections
import json
import math
import random
import subprocess
import sys
import textwrap
import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from paths import ROOT

from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import pipeline
from codellama_jax.data.infilling import plain_ids
from codellama_jax.errors import UserError

T, ROWS = 32, 4
MIXTURE = MixtureConfig(code=0.6, discussions=0.3, language=0.1)
few = hypothesis.settings(
    deadline=None, max_examples=8, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)


@pytest.fixture(autouse=True, scope="module")
def small_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "bins", lambda seq_len: 3)
        yield


def make_documents(count, seed=0, lines=(2, 4, 20)):
    rng = random.Random(seed)
    words = ["def", "x", "= 1", "return", "self", "for i in", "é"]
    documents = []
    for i in range(count):
        text = []
        for _ in range(rng.randint(1, rng.choice(lines))):
            text.append(" ".join(rng.choices(words, k=rng.randint(1, 6))))
        documents.append({"id": f"{seed}/{i}.py".encode(), "text": "\n".join(text).encode()})
    return documents


SOURCES = {
    "code": make_documents(57),
    "discussions": make_documents(31, 1),
    "language": make_documents(3, 2),
}


def config(rate=0.9, mixture=MIXTURE, rows=ROWS, seq_len=T):
    return DataConfig(seq_len, rows, mixture, InfillingConfig(rate=rate))


def take(tokenizer, steps, lanes=range(ROWS), state=None, data=None, sources=SOURCES, seed=3):
    with pipeline.Batches(sources, data or config(), tokenizer, seed, lanes) as batches:
        if state is not None:
            batches.restore(state)
        return [next(batches) for _ in range(steps)], batches.state()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def joined(hosts, order):
    """Joins the batches of several hosts, in the order of lanes."""
    batches = []
    for step in zip(*hosts):
        keys = step[0]
        batches.append({key: np.concatenate([b[key] for b in step])[order] for key in keys})
    return batches


def segments(batches):
    """Yields (source, document, ids, positions) of each segment, row by row."""
    for batch in batches:
        for row in range(len(batch["tokens"])):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                (columns,) = np.nonzero(batch["segment_ids"][row] == segment)
                (document,) = set(batch["documents"][row, columns].tolist())
                ids = [
                    *batch["tokens"][row, columns].tolist(),
                    int(batch["targets"][row, columns[-1]]),
                ]
                assert batch["targets"][row, columns[:-1]].tolist() == ids[1:-1]
                yield (
                    int(batch["source"][row]),
                    document,
                    ids,
                    batch["positions"][row, columns].tolist(),
                )


def lanes_of(hosts, contiguous):
    if contiguous:
        return [range(h * ROWS // hosts, (h + 1) * ROWS // hosts) for h in range(hosts)]
    return [range(h, ROWS, hosts) for h in range(hosts)]


@pytest.fixture(scope="module")
def stream(tokenizer, small_groups):
    """45 undisturbed batches."""
    return take(tokenizer, 45)[0]


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("hosts", [2, 4])
def test_the_stream_is_the_same_on_any_number_of_hosts(tokenizer, stream, hosts, contiguous):
    lanes = lanes_of(hosts, contiguous)
    order = np.argsort([lane for host in lanes for lane in host])
    parts = [take(tokenizer, 45, host)[0] for host in lanes]
    assert_equal(joined(parts, order), stream)


@few
@hypothesis.given(
    stop=st.integers(0, 30),
    more=st.integers(1, 10),
    hosts=st.sampled_from([1, 2, 4]),
    then=st.sampled_from([1, 2, 4]),
)
def test_a_resumed_stream_continues(tokenizer, stream, stop, more, hosts, then):
    saved = {}
    for lanes in lanes_of(hosts, True):
        saved |= json.loads(json.dumps(take(tokenizer, stop, lanes)[1]))
    assert saved.keys() == {str(lane) for lane in range(ROWS)}
    lanes = lanes_of(then, False)
    order = np.argsort([lane for host in lanes for lane in host])
    resumed = [take(tokenizer, more, host, saved) for host in lanes]
    assert_equal(joined([batches for batches, _ in resumed], order), stream[stop : stop + more])
    again = [take(tokenizer, 5, host, state)[0] for host, (_, state) in zip(lanes, resumed)]
    assert_equal(joined(again, order), stream[stop + more : stop + more + 5])


def test_restoring_an_iterator_in_use(tokenizer, stream):
    with pipeline.Batches(SOURCES, config(), tokenizer, 3, range(ROWS)) as batches:
        first = [next(batches) for _ in range(7)]
        state = batches.state()
        second = [next(batches) for _ in range(20)]
        batches.restore(state)
        assert_equal([next(batches) for _ in range(20)], second)
        assert_equal(first, stream[:7])


@pytest.mark.parametrize("count", [1, 3, 7, 60])
def test_sequences_hold_complete_documents(tokenizer, count):
    """Every segment is a part of a document and none is missing, also with few documents."""
    documents = make_documents(count, 5)
    batches, _ = take(
        tokenizer, 60, data=config(0.0, MixtureConfig(python=1.0)), sources={"python": documents}
    )
    seen, starts = collections.Counter(), {}
    plain = [plain_ids(tokenizer, pipeline.text_of(d)) for d in documents]
    for source, i, ids, positions in segments(batches):
        assert source == pipeline.SOURCES.index("python") and positions == list(
            range(len(positions))
        )
        parts = [plain[i][a : a + T + 1] for a in range(0, len(plain[i]) - 1, T)]
        assert ids in parts
        seen[i] += 1
        starts.setdefault(i, set()).add(parts.index(ids))
    assert all(starts[i] == set(range(math.ceil((len(plain[i]) - 1) / T))) for i in range(count))


def test_more_lanes_than_python_nests_calls(characters):
    lanes = range(sys.getrecursionlimit() + 50)
    sources, data = (
        {"code": [{"id": b"a", "text": b"x = 1\n"}]},
        config(0.0, MixtureConfig(code=1.0), len(lanes), seq_len=8),
    )
    (batch,), _ = take(characters, 1, lanes, data=data, sources=sources)
    assert (batch["tokens"] == batch["tokens"][0]).all() and len(batch["tokens"]) == len(lanes)


def test_batches_are_well_formed(tokenizer):
    batches, _ = take(tokenizer, 60)
    for batch in batches:
        padding = batch["segment_ids"] == 0
        assert all(
            batch[k].shape == (ROWS, T)
            for k in ("tokens", "targets", "segment_ids", "positions", "documents", "weights")
        )
        weights = batch.pop("weights")
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights, ~padding)
        assert all(array.dtype == np.int32 for array in batch.values()) and batch[
            "source"
        ].shape == (ROWS,)
        assert all((batch[k][padding] == 0).all() for k in ("tokens", "targets", "positions"))
        assert ((batch["documents"] == -1) == padding).all()
        steps = np.diff(batch["segment_ids"], axis=1)
        assert (np.isin(steps, (0, 1)) | (batch["segment_ids"][:, 1:] == 0)).all() and (
            batch["segment_ids"][:, 0] == 1
        ).all()
    assert np.mean([batch["segment_ids"] > 0 for batch in batches]) > 0.85


def test_a_document_longer_than_a_sequence_stays_plain(tokenizer):
    sentinels = {tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id, tokenizer.eot_id}
    cut = whole = 0
    for source, i, ids, _ in segments(take(tokenizer, 150, data=config(1.0))[0]):
        plain = plain_ids(tokenizer, pipeline.text_of(SOURCES[pipeline.SOURCES[source]][i]))
        if sentinels & set(ids):
            assert (
                ids[:2] == [tokenizer.bos_id, tokenizer.pre_id]
                and ids[-1] == tokenizer.eot_id
                and len(plain) <= T + 1
            )
            assert sorted(i for i in ids if i in sentinels) == sorted(sentinels)
            cut += 1
        elif len(plain) <= T + 1:
            # Plain, because with the sentinels the document would be too long.
            assert ids == plain and len(plain) > T - 20
        else:
            whole += 1
    assert cut > 100 and whole > 100


def test_infilling_depends_only_on_the_document_and_the_epoch(tokenizer):
    documents = make_documents(40, 5, lines=(2, 3))

    def forms(rows, seed):
        """The ids that each short document had, in the order of reading."""
        forms_of, data = (
            collections.defaultdict(list),
            config(0.9, MixtureConfig(code=1.0), rows, seq_len=80),
        )
        batches, _ = take(
            tokenizer, 120 // rows, range(rows), data=data, sources={"code": documents}, seed=seed
        )
        for _, i, ids, _ in segments(batches):
            forms_of[i].append(tuple(ids))
        return forms_of

    single, three, other = forms(1, 3), forms(3, 3), forms(1, 4)
    assert all(len(single[i]) >= 4 for i in range(40))
    # With another number of lanes a document is elsewhere, but split alike.
    assert all(set(single[i][:2]) <= set(three[i]) for i in range(40))
    # Another epoch and another seed split it at other positions.
    assert sum(len(set(single[i][:3])) == 3 for i in range(40)) > 25
    assert sum(single[i][0] != other[i][0] for i in range(40)) > 25


def test_shares_and_positions_of_splits_over_100_000_documents(characters):
    count, jitter = 100_000, np.random.default_rng(0)
    encode = pipeline.encoder(
        characters, config(0.9, seq_len=64), 7, count // 2
    )  # two epochs of 50,000
    firsts, seconds, spm_seconds, spare = [], [], [], []
    space = characters.encode(
        " ", leading_space=False
    )  # before SPM's prefix and middle, and before no PSM middle
    for index in range(count):
        length = 40 + index % 16
        ids = encode(index, {"text": "x" * length})["ids"][:, 0].tolist()
        if characters.pre_id not in ids:
            continue
        suffix, middle = ids.index(characters.suf_id), ids.index(characters.mid_id)
        second = length - (middle - suffix - 1)

        def place(position, length=length):
            return (position + jitter.random()) / (length + 1)

        if suffix == 2 and ids[middle + 1 :][:1] == space:
            spm_seconds.append(place(second))
        else:
            first = max(suffix - 3, 0)
            firsts.append(place(first))
            seconds.append(place(second))
            spare.append((second - first) / (length * (length + 2) / (3 * (length + 1))))
    cut = len(firsts) + len(spm_seconds)
    assert abs(cut / count - 0.9) < 0.005 and abs(len(spm_seconds) / cut - 0.5) < 0.005
    assert scipy.stats.kstest([*firsts, *seconds], "uniform").pvalue > 0.01
    # The later of two uniform positions.
    assert scipy.stats.kstest(np.square(spm_seconds), "uniform").pvalue > 0.01
    assert abs(np.mean(spare) - 1) < 0.01  # the mean middle between two independent positions
    # Each document has its own positions.
    assert abs(np.corrcoef(seconds[1:], seconds[:-1])[0, 1]) < 0.03


def test_sources_have_the_shares_of_the_mixture(tokenizer):
    shares = (0.85, 0.0, 0.08, 0.07)
    drawn = np.array([pipeline.source_of_sequence(row, shares) for row in range(100_000)])
    for source, share in enumerate(shares):
        mine = drawn == source
        assert abs(mine.mean() - share) < 1e-4
        for size in (64, 1024):  # every batch, not only all of them
            assert np.abs(mine[: 97 * size].reshape(97, size).sum(1) - share * size).max() < 3.5
    batches, _ = take(tokenizer, 125)
    sources = np.concatenate([b["source"] for b in batches])
    assert [
        abs((sources == pipeline.SOURCES.index(s)).mean() - getattr(MIXTURE, s)) < 3e-3
        for s in SOURCES
    ] == [True] * 3


SIX = MixtureConfig(
    code=0.3, discussions=0.2, language=0.1, others={"rust": 0.1, "java": 0.2, "c_sharp": 0.1}
)
SIX_SOURCES = SOURCES | {name: make_documents(20, 3, (2, 4)) for name in SIX.others}


def test_six_sources(tokenizer):
    """Further sources follow the four by alphabet, each with its share, documents and order."""
    batches, state = take(tokenizer, 100, data=config(0.0, SIX), sources=SIX_SOURCES)
    names = ["code", "python", "discussions", "language", "c_sharp", "java", "rust"]
    assert list(SIX.shares()) == names
    assert set(state["0"]["sources"]) == set(names) - {"python"}
    drawn = np.concatenate([b["source"] for b in batches])
    for i, name in enumerate(names):
        assert abs((drawn == i).mean() - SIX.shares()[name]) < 0.01
    for source, i, ids, _ in segments(batches[:20]):
        plain = plain_ids(tokenizer, pipeline.text_of(SIX_SOURCES[names[source]][i]))
        assert ids in [plain[a : a + T + 1] for a in range(0, len(plain) - 1, T)]
    orders = {name: [] for name in SIX.others}  # the same documents
    for source, i, _, _ in segments(batches):
        if names[source] in orders:
            orders[names[source]].append(i)
    assert len({tuple(order[:10]) for order in orders.values()}) == 3


def test_the_order_in_which_further_sources_are_given_changes_nothing(tokenizer):
    turned = MixtureConfig(
        language=0.1,
        others=dict(reversed(SIX.others.items())) | {"absent": 0.0},
        discussions=0.2,
        code=0.3,
    )
    stream = take(tokenizer, 15, data=config(mixture=SIX), sources=SIX_SOURCES)[0]
    other = take(tokenizer, 15, data=config(mixture=turned), sources=SIX_SOURCES)[0]
    for batch, again in zip(stream, other, strict=True):
        np.testing.assert_array_equal(batch["tokens"], again["tokens"])


def test_sources_without_a_share_are_not_opened(tokenizer):
    class Untouchable:
        def __getattribute__(self, name):
            pytest.fail(f"{name} of a source without a share")

    mixture = MixtureConfig(code=2.0)
    batches, _ = take(
        tokenizer, 3, data=config(mixture=mixture), sources=SOURCES | {"language": Untouchable()}
    )
    assert all((b["source"] == 0).all() for b in batches)


def test_one_line_for_a_mixture_without_documents(tokenizer):
    for sources in ({}, {"code": []}):
        with pytest.raises(UserError, match="'code', which holds no documents"):
            pipeline.Batches(sources, config(), tokenizer, 0, range(ROWS))
    with pytest.raises(UserError, match="the mixture is empty"):
        pipeline.validation_batches(SOURCES, config(mixture=MixtureConfig()), tokenizer, 4)


def test_one_line_for_another_batch_size(tokenizer):
    state = take(tokenizer, 1)[1]
    with pytest.raises(UserError, match=r"no data cursor for sequence 4 .* batch_size"):
        take(tokenizer, 1, range(ROWS + 1), state, config(rows=ROWS + 1))


def test_document_names(tokenizer):
    with pipeline.Batches(SOURCES, config(), tokenizer, 0, range(ROWS)) as batches:
        batch = next(batches)
        expected = {
            SOURCES[pipeline.SOURCES[s]][i]["id"].decode() for s, i, _, _ in segments([batch])
        }
        names = batches.document_names(batch)
    assert set(names) == expected and len(names) == len(expected) > 3


def test_validation_sequences_are_plain_complete_and_fixed(tokenizer):
    data = config(0.9, MixtureConfig(code=1.0), rows=4)
    everything = pipeline.validation_batches(SOURCES, data, tokenizer, 10_000)
    packed = collections.Counter((i, tuple(ids)) for _, i, ids, _ in segments(everything))
    expected = collections.Counter()
    for i, document in enumerate(SOURCES["code"]):
        plain = plain_ids(tokenizer, pipeline.text_of(document))
        expected.update((i, tuple(plain[a : a + T + 1])) for a in range(0, len(plain) - 1, T))
    assert packed == expected
    first = pipeline.validation_batches(
        SOURCES, config(0.0, MixtureConfig(code=1.0), rows=5), tokenizer, 12
    )
    assert [len(b["tokens"]) for b in first] == [5, 5, 2]

    def flat(batches):
        joined_batch = {}
        for key in batches[0]:
            joined_batch[key] = np.concatenate([batch[key] for batch in batches])[:12]
        return [joined_batch]

    assert_equal(flat(first), flat(everything))
    mixed = pipeline.validation_batches(SOURCES, config(), tokenizer, 10_000)
    assert {s for b in mixed for s in b["source"].tolist()} == {0, 2, 3}


def test_an_error_in_the_thread_reaches_the_caller(tokenizer):
    with (
        pipeline.Batches(
            {"code": [{"id": b"a", "text": "a\ud800"}]},
            config(mixture=MixtureConfig(code=1.0)),
            tokenizer,
            0,
            [0],
        ) as batches,
        pytest.raises(UserError, match="lone surrogate"),
    ):
        next(batches)


def test_closing_ends_the_thread(tokenizer):

    def running():
        return [t for t in threading.enumerate() if t.name.startswith("grain-thread-prefetch")]

    batches = pipeline.Batches(SOURCES, config(), tokenizer, 0, range(ROWS))
    next(batches)
    assert len(running()) == 1
    batches.close()
    batches.close()
    assert not running()
    next(
        pipeline.Batches(SOURCES, config(), tokenizer, 0, range(ROWS))
    )  # forgotten rather than closed
    assert not running()


def test_ctrl_c_ends_the_program(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    program = """
        import sys
        from codellama_jax.tokenizers import files as tokenizer
        from codellama_jax.config import DataConfig, MixtureConfig
        from codellama_jax.data import pipeline
        documents = [{"id": b"a", "text": b"def f(x):\\n    return x\\n" * 50}]
        data = DataConfig(64, 4, MixtureConfig(code=1.0))
        loaded = tokenizer.load(sys.argv[1])
        batches = pipeline.Batches({"code": documents}, data, loaded, 0, range(4))
        next(batches)
        raise KeyboardInterrupt
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "tokenizer.model")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode in (-2, 130) and ended.stderr.splitlines()[-1] == "KeyboardInterrupt", (
        ended.stderr
    )


def test_weights_stay_with_their_tokens_when_documents_are_packed(tokenizer, monkeypatch):
    """Weights of the encoder, which here depend on the token, after splitting and packing."""
    encoder = pipeline.encoder

    def weighted(*arguments):
        encode = encoder(*arguments)

        def with_weights(index, document):
            encoded = encode(index, document)
            return encoded | {"weights": 1 + encoded["ids"][:, 1].astype(np.float32)}

        return with_weights

    monkeypatch.setattr(pipeline, "encoder", weighted)
    for batch in take(tokenizer, 20)[0]:
        real = batch["segment_ids"] > 0
        np.testing.assert_array_equal(batch["weights"], np.where(real, 1 + batch["targets"], 0))
