"""The infilling transform: the order of the parts, round trips, and documents that stay plain."""

from random import Random

import hypothesis
import hypothesis.strategies as st
import pytest
from paths import TOKENIZER

from codellama_jax.config import InfillingConfig
from codellama_jax.data import infilling
from codellama_jax.tokenizers import files

SNIPPETS = [
    "def f(x):\n    ",
    "\t",
    "\r\n",
    " " * 16,
    "▁",
    "<PRE>",
    " <EOT>",
    "给",
    "👩‍👩‍👧",
    "0x12",
    "return",
]

any_text = st.one_of(st.text(), st.lists(st.sampled_from(SNIPPETS), max_size=40).map("".join))
examples = hypothesis.settings(deadline=None, max_examples=150)


@examples
@hypothesis.given(text=any_text, seed=st.integers(0, 2**32 - 1), spm=st.booleans())
def test_any_text_is_rebuilt(tokenizer, text, seed, spm):
    prefix, middle, suffix = infilling.split(text, Random(seed))
    assert prefix + middle + suffix == text
    ids = infilling.infill_ids(tokenizer, prefix, middle, suffix, spm)
    special = [i for i in ids if i >= tokenizer.pieces or i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert special == [
        tokenizer.bos_id,
        tokenizer.pre_id,
        tokenizer.suf_id,
        tokenizer.mid_id,
        tokenizer.eot_id,
    ]
    suf, mid = ids.index(tokenizer.suf_id), ids.index(tokenizer.mid_id)
    assert tokenizer.decode(ids[suf:mid], leading_space=False) == suffix
    if spm:
        assert suf == 2 and tokenizer.decode(ids[mid:]) == prefix + middle
    else:
        assert tokenizer.decode(ids[:suf]) == prefix
        assert tokenizer.decode(ids[mid:], leading_space=False) == middle


@examples
@hypothesis.given(prefix=any_text, middle=any_text, suffix=any_text)
def test_layouts_are_the_published_ones(tokenizer, prefix, middle, suffix):
    t, bare = tokenizer, lambda text: tokenizer.encode(text, leading_space=False)
    psm = [t.bos_id, t.pre_id, *t.encode(prefix), t.suf_id, *bare(suffix), t.mid_id]
    spm = [t.bos_id, t.pre_id, t.suf_id, *bare(suffix), t.mid_id]
    assert infilling.infill_ids(t, prefix, middle, suffix, spm=False) == [
        *psm,
        *bare(middle),
        t.eot_id,
    ]
    assert infilling.infill_ids(t, prefix, middle, suffix, spm=True) == [
        *spm,
        *t.encode(prefix + middle),
        t.eot_id,
    ]
    assert infilling.prompt_ids(t, prefix, suffix, spm=False) == psm
    assert infilling.prompt_ids(t, prefix, suffix, spm=True) == [*spm, *t.encode(prefix)]
    assert infilling.plain_ids(t, prefix) == [t.bos_id, *t.encode(prefix), t.eos_id]


def test_published_prompt():
    """Ids of this prompt by the published code, as recorded in ggml-org/llama.cpp#3503."""
    if not TOKENIZER.exists():
        pytest.skip("needs the published files")
    prefix, suffix = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"
    expected = "1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851"
    expected += " 29901 13 1678 9995 29871 32008 13 1678 736 1121 13 32009"
    assert infilling.prompt_ids(files.load(TOKENIZER), prefix, suffix, spm=False) == [
        int(i) for i in expected.split()
    ]


@examples
@hypothesis.given(
    text=any_text,
    seed=st.integers(0, 999),
    seq_len=st.integers(4, 80),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_only_documents_that_fit_a_sequence_are_split(tokenizer, text, seed, seq_len, rate):
    ids = infilling.document_ids(tokenizer, text, Random(seed), InfillingConfig(rate=rate), seq_len)
    rng, plain = Random(seed), infilling.plain_ids(tokenizer, text)
    chosen, spm = rng.random() < rate, rng.random() < 0.5
    cut = infilling.infill_ids(tokenizer, *infilling.split(text, rng), spm)
    if not chosen or len(cut) > seq_len + 1:
        assert ids == plain
    elif len(plain) <= seq_len + 1:
        assert ids == cut
    else:
        assert ids in (plain, cut)


@pytest.mark.parametrize("spm", [0.0, 1.0])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_document_that_is_split(characters, spm, extra):
    seq_len, around = 500, 6  # BOS, PRE, the leading space, SUF, MID, EOT
    text = "x" * (seq_len + 1 - around + extra)
    ids = infilling.document_ids(
        characters, text, Random(0), InfillingConfig(rate=1.0, spm=spm), seq_len
    )
    assert (
        ids == infilling.plain_ids(characters, text)
        if extra
        else len(ids) == seq_len + 1 and ids[-1] == characters.eot_id
    )


def test_a_long_document_is_encoded_once(tokenizer, monkeypatch):
    calls, encode = [], type(tokenizer).encode
    monkeypatch.setattr(
        type(tokenizer),
        "encode",
        lambda self, text, **flags: calls.append(text) or encode(self, text, **flags),
    )
    text = "for x in range(10):\n    print(x)\n" * 100
    ids = infilling.document_ids(tokenizer, text, Random(0), InfillingConfig(rate=1.0), 64)
    assert calls == [text] and ids == infilling.plain_ids(tokenizer, text)
