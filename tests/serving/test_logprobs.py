"""Tokens as the protocols list them: texts, and bytes where a character is several tokens."""

import pytest
from byte_bpe_cases import trained

from codellama_jax.serving.logprobs import TokenLogprob, listed, pieces
from codellama_jax.tokenizers import sentencepiece

TEXT = "naïve 日本 🙂\n"


class CountingTokenizer:
    """Spells id i "<i>" and counts how often it decodes."""

    decoded = 0

    def token_bytes(self, token: int) -> bytes:
        self.decoded += 1
        return f"<{token}>".encode()


def test_a_repeated_id_is_decoded_once():
    tokenizer = CountingTokenizer()
    listed = pieces(tokenizer, [7, 8, 7, 7])
    assert [entry["piece"] for entry in listed] == ["<7>", "<8>", "<7>", "<7>"]
    assert [entry["id"] for entry in listed] == [7, 8, 7, 7]
    assert tokenizer.decoded == 2


@pytest.fixture(scope="module", params=["sentencepiece", "byte_bpe"])
def tokenizer(request, tmp_path_factory):
    if request.param == "byte_bpe":
        return trained("gpt2")
    words = [f"value_{number} = {number}" for number in range(200)]
    return sentencepiece.train(words, 340, tmp_path_factory.mktemp("tokenizer"))


def test_the_bytes_of_all_tokens_are_the_text(tokenizer):
    ids = tokenizer.encode(TEXT, leading_space=False)
    scored = [TokenLogprob(i, -1.0, [(i, -1.0), (tokenizer.eos_id, -2.0)]) for i in ids]
    entries = listed(tokenizer, scored)
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == TEXT.encode()
    assert any(entry["token"] == "\ufffd" for entry in entries)
    for entry in entries:
        same, end = entry["top_logprobs"]
        assert same["bytes"] == entry["bytes"] and end["bytes"] == []
        # A token of complete characters has the bytes of its text.
        if "\ufffd" not in entry["token"]:
            assert bytes(entry["bytes"]).decode() == entry["token"]


def test_a_part_of_a_character_is_listed_as_bytes(tokenizer):
    """As llama.cpp does; U+FFFD would not tell which part."""
    data = b""
    kinds = set()
    for entry in pieces(tokenizer, tokenizer.encode(TEXT, leading_space=False)):
        piece = entry["piece"]
        kinds.add(type(piece))
        data += piece.encode() if isinstance(piece, str) else bytes(piece)
    assert data == TEXT.encode() and kinds == {str, list}
