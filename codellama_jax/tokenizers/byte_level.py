"""How byte-level BPE writes bytes and splits text: the rules of GPT-2, Codex, CodeGeeX, StarCoder.

Every kind begins with GPT-2's rules: text is split by GPT-2's regular expression, and the bytes of
each part are merged. The kinds differ in runs of spaces, digits and special tokens.

- codex: runs of 2 to 25 spaces are merged last, in the order of their ids. GPT-2's split leaves the
  last space of a run with the next word, and runs above 25 are not split greedily (26 = 16 + 10).
- codegeex: runs of 2 to 10 spaces are tokens that are found before the split, the longest first.
  They include the last space of a run.
- starcoder: each digit is split off first; the special tokens come before the bytes.
"""

from __future__ import annotations

from typing import Any

SPACE = "Ġ"  # how byte-level vocabularies write the byte of a space
END_OF_TEXT = "<|endoftext|>"
CODEX_LONGEST, CODEGEEX_LONGEST = 25, 10  # spaces of one token
CODEGEEX_EXTRA_TOKENS = 143  # <|extratoken_1|> to <|extratoken_143|>, of which runs take 10 to 18
CODEGEEX_FIRST_RUN = 10  # <|extratoken_10|> is the run of 2 spaces
STARCODER_TOKENS = (
    END_OF_TEXT,
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
)
KINDS = ("gpt2", "codex", "codegeex", "starcoder")


def _alphabet() -> dict[int, str]:
    """Returns GPT-2's character for each byte: itself if it is printable, else one from U+0100."""
    characters = {}
    for byte in range(256):
        is_printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        if is_printable:
            characters[byte] = chr(byte)
    # The other 68 bytes, in order, take the characters from U+0100 on. So every token is printable
    # text and JSON can hold it.
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(256 + len(characters) - PRINTABLE)
    return characters


PRINTABLE = 188  # bytes that are written as themselves
CHARACTERS = _alphabet()
BYTES = {character: byte for byte, character in CHARACTERS.items()}
# UTF-8 never holds the other 13 bytes, so a vocabulary may lack them.
UTF8_BYTES = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]


def bytes_of(token: str) -> bytes:
    """Returns the bytes of a token; a token outside the alphabet stands for its own text."""
    try:
        return bytes(map(BYTES.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "replace")


def pre_tokenizer(kind: str) -> dict[str, Any]:
    """Returns the split of a kind as tokenizer.json has it."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    if kind != "starcoder":
        return byte_level
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, byte_level]}


def added_token(token: str, row: int, special: bool = True) -> dict[str, Any]:
    """Returns an entry of `added_tokens` of tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": row, "content": token, **flags, "special": special}


def added_entries(kind: str) -> int:
    """Returns the number of vocabulary entries of a kind beside bytes and their merges."""
    runs = {"codex": CODEX_LONGEST - 1, "codegeex": CODEGEEX_EXTRA_TOKENS}
    return len(STARCODER_TOKENS) if kind == "starcoder" else 1 + runs.get(kind, 0)


def add_runs(
    kind: str, vocab: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]]
) -> None:
    """Adds the runs of spaces of a kind after the last id of a vocabulary, in place.

    Runs that it has already, as those of a published vocab.json of Codex, stay as they are.
    """
    rows = 1 + max([*vocab.values(), *(token["id"] for token in added)])
    if kind == "codex":
        missing = [n for n in range(2, CODEX_LONGEST + 1) if SPACE * n not in vocab]
        for row, length in enumerate(missing, rows):
            # Added after all other merges: a run is joined only where no ordinary merge applies.
            vocab[SPACE * length] = row
            # The rank rule joins any two parts whose sum is a token, the shortest sum first.
            for left in range(1, length):
                merges.append([SPACE * left, SPACE * (length - left)])
    # GPT-J's vocabulary, from which CodeGeeX took its own, lists the extra tokens.
    if kind == "codegeex":
        existing = {token["content"]: token["id"] for token in added} | vocab
        for number in range(1, CODEGEEX_EXTRA_TOKENS + 1):
            name = f"<|extratoken_{number}|>"
            row = existing.get(name, rows + number - 1)
            # The id of an extra token is reused for a run, so that its name must no longer encode
            # to it.
            vocab.pop(name, None)
            added[:] = [token for token in added if token["content"] != name]
            length = number - CODEGEEX_FIRST_RUN + 2
            if 2 <= length <= CODEGEEX_LONGEST:
                added.append(added_token(" " * length, row, special=False))
            else:
                added.append(added_token(name, row))
