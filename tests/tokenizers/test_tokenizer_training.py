"""Any corpus trains a tokenizer of any size from 300 pieces."""

import argparse
import ast
import inspect
import random
import string

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.tokenizers import training as tokenizer_training

TEXTS = [inspect.getsource(module) for module in (argparse, ast, random, string)]
CHINESE = "".join(chr(0x4E00 + number) for number in range(2500))  # more characters than room


@hypothesis.given(
    texts=st.lists(st.text(max_size=20)),
    limit=st.integers(1, 60),
    seed=st.randoms(use_true_random=False),
)
def test_sample_is_bounded_and_ignores_order(texts, limit, seed):
    sample = tokenizer_training.sample(texts, limit)
    shuffled = list(texts)
    seed.shuffle(shuffled)
    kept = [text for _, text in sample]
    assert tokenizer_training.sample(shuffled, limit) == sample == sorted(sample)
    assert sum(map(len, kept)) >= min(limit, sum(map(len, texts)))
    assert sum(map(len, kept[:-1])) < limit or not kept[-1]
    assert all(kept.count(text) <= texts.count(text) for text in kept)


def test_a_small_corpus_leaves_pieces_unused(tmp_path):
    lines = []
    tokenizer = tokenizers.train(TEXTS[-1:], 30_000, tmp_path, lines.append)
    assert tokenizer.pieces == 30_000
    held = int(lines[0].split(" for ")[1].split()[0].replace(",", ""))
    assert f"the other {30_000 - held:,} of --tokenizer.pieces 30000 stay unused" in lines[0]
    assert max(tokenizer.text_ids) == held - 1
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.decode(range(held, 30_000)) == ""
    exact = tokenizers.train(TEXTS[-1:], held, tmp_path)
    assert exact.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_text_never_becomes_an_unused_piece(tmp_path):
    tokenizer = tokenizers.train(["def f(x):"], 320, tmp_path)
    assert tokenizer.pieces - 1 not in tokenizer.text_ids
    for text in ("<unused_piece_0>", "▁<unused_piece_0>"):
        ids = tokenizer.encode(text)
        assert len(ids) > 5 and tokenizer.decode(ids) == text


def test_rare_characters_fall_back_to_bytes(tmp_path):
    tokenizer = tokenizers.train([*TEXTS, CHINESE], 1008, tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    for letter in string.ascii_letters:
        (token,) = tokenizer.encode(letter, leading_space=False)
        assert not processor.is_byte(token)
    assert sum(map(processor.is_byte, tokenizer.encode(CHINESE))) > 2000 * 3
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2  # most of the room is for merges
    assert tokenizer.decode(tokenizer.encode(CHINESE)) == CHINESE


ODD_CORPORA = {
    "one letter": ["x"],
    "a long line": ["x" * 10_000],
    "long lines of words": ["some words of a line " * 500] * 2,
    "more characters than pieces": [CHINESE],
    "characters that SentencePiece reserves": ["▅▅", "a▁b"],
    "ends of lines": ["a\r\nb\u2028c\0d"],
}


@pytest.mark.parametrize("corpus", ODD_CORPORA)
@pytest.mark.parametrize("pieces", [300, 301, 1008])
def test_odd_corpora(tmp_path, corpus, pieces):
    texts = ODD_CORPORA[corpus]
    tokenizer = tokenizers.train(texts, pieces, tmp_path)
    assert tokenizer.pieces == pieces
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


@hypothesis.settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(texts=st.lists(st.text(), max_size=5), pieces=st.integers(300, 700))
def test_any_corpus_trains(tmp_path, texts, pieces):
    texts = [*texts, "x"]
    tokenizer = tokenizers.train(texts, pieces, tmp_path)
    assert tokenizer.pieces == pieces
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


@pytest.mark.parametrize("pieces", [-1, 0, 100, 260, 299])
def test_too_few_pieces(tmp_path, pieces):
    with pytest.raises(UserError, match=r"pass --tokenizer\.pieces 300") as error:
        tokenizers.train(TEXTS[:1], pieces, tmp_path)
    assert f"tokenizer.pieces is {pieces}: " in str(error.value)


def test_too_many_pieces(tmp_path):
    with pytest.raises(UserError, match=r"pieces is 1000000000000: .* 1,000,000 or fewer"):
        tokenizers.train(TEXTS[:1], 10**12, tmp_path)


@pytest.mark.parametrize("texts", [[], ["", "\n\n"]])
def test_empty_corpus(texts, tmp_path):
    with pytest.raises(UserError, match="the corpus holds no text"):
        tokenizers.train(texts, 800, tmp_path)


def test_a_home_folder_as_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tokenizers.train(["def f(x):"], 300, "~/cache")
    assert list(tmp_path.glob("cache/tokenizer-*.model")) and not (tmp_path / "~").exists()


def test_progress_is_reported(tmp_path, monkeypatch):
    lines = []
    tokenizers.train(TEXTS, 500, tmp_path, lines.append)
    characters = f"{sum(map(len, TEXTS)):,} characters"
    assert lines == [f"tokenizer: 500 pieces from {characters} of {len(TEXTS)} documents"]
    lines.clear()
    tokenizers.train(TEXTS, 500, tmp_path, lines.append)
    assert lines == []
