"""Detects text around the code of a completion: markdown fences and invisible characters.

Public harnesses run such a completion unchanged, and it fails with a syntax error that does not
name the cause. `cause` names it; `extract` returns the code inside.
"""

from __future__ import annotations

import re

# A line that opens or closes a fence, with the name of a language.
FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n`]*$", re.M)
# A fenced block; its end may be missing, if the model ran out of tokens.
FENCED = re.compile(
    r"^[ \t]*(?P<fence>```+|~~~+)[^\n`]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[ \t]*$|\Z)",
    re.M | re.S,
)
# Characters that look like a space.
SPACES = {
    "\N{NO-BREAK SPACE}": "a no-break space (NBSP, U+00A0)",
    "\N{NARROW NO-BREAK SPACE}": "a narrow no-break space (U+202F)",
    "\N{IDEOGRAPHIC SPACE}": "an ideographic space (U+3000)",
}
# Characters that are not displayed.
INVISIBLE = {
    "\N{ZERO WIDTH NO-BREAK SPACE}": "a byte order mark (BOM, U+FEFF)",
    "\N{ZERO WIDTH SPACE}": "a zero-width space (U+200B)",
    "\0": "a NUL character",
}
QUOTES = ("\N{LEFT DOUBLE QUOTATION MARK}", "\N{LEFT SINGLE QUOTATION MARK}")
# Marks that models write at the end of a text. Their tokenizers should have removed them.
ENDS = ("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<EOT>", "[/PYTHON]")
# Messages of Python, Bash, PHP, JavaScript and compilers; "build:" is the sandbox's.
SYNTAX = re.compile(r"SyntaxError|IndentationError|TabError|[Ss]yntax error|[Pp]arse error|^build:")


def is_syntax_error(detail: str) -> bool:
    """Returns whether a verdict's detail reports a syntax error, in any language."""
    return bool(SYNTAX.search(detail))


def cause(text: str) -> str:
    """Returns a description of the text that makes a completion invalid, "" if none is known."""
    # Invisible characters before a fence must not hide it.
    bare = text.strip().strip("\ufeff\u200b").strip()
    fences = [match.start() for match in FENCE.finditer(bare)]
    if fences and fences[0] == 0:
        return "completion is wrapped in a markdown fence"
    if len(fences) == 1:
        return "completion has a trailing markdown fence"
    if fences:
        return "completion holds code in a markdown fence, between other text"
    for character, name in {**INVISIBLE, **SPACES}.items():
        if character in text:
            return f"completion holds {name}"
    for mark in ENDS:
        if mark in text:
            return f"completion holds {mark}, which ends a model's text"
    if any(quote in text for quote in QUOTES):
        return "completion holds typographic quotes"
    return ""


def extract(text: str) -> str:
    """Returns the first fenced block of a text, or the text before a single closing fence.

    Other kinds of spaces become plain ones, invisible characters are removed, and the text stops
    at a mark that ends a model's text. Plain code is returned unchanged.
    """
    for character in INVISIBLE:
        text = text.replace(character, "")
    for character in SPACES:
        text = text.replace(character, " ")
    for mark in ENDS:
        text = text.partition(mark)[0]
    fences = list(FENCE.finditer(text))
    if not fences:
        return text
    # A prompt inside of a fence makes the model close it after its code.
    if len(fences) == 1 and text[: fences[0].start()].strip():
        return text[: fences[0].start()]
    block = FENCED.search(text)
    return block["code"] if block else text
