"""Applies the rules of a policy that need one document: which documents are kept.

Each rule is a function of a text. Its time grows at most linearly with the text, and it raises for
no text: a corpus holds every pathological file that exists.
"""

from __future__ import annotations

import fnmatch
import html
import re
import string
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from codellama_jax.data.prepare.filters import comments, languages
from codellama_jax.data.prepare.policies import ExtensionRules, Policy
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.data.prepare.records import Dropped, Record

GENERATED_MARKER = re.compile(
    r"auto(matically)?[- ]?generated|@generated|do not edit|generated and used by"
    r"|generated (by|from|with) \S*\w[./]\w",
    re.IGNORECASE,
)
XML_CHARACTERS = 100  # at the start of a file in which an XML declaration counts
_ASCII_LETTERS = string.ascii_letters.encode()
_ALPHANUMERIC = _ASCII_LETTERS + string.digits.encode()
# Bytes that count as letters. Every byte of a character outside ASCII is one of the upper 128.
_LETTERS = _ASCII_LETTERS + bytes(range(128, 256))
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_TAG = re.compile(r"<(?:/?([a-z][^\s/>]*)|[!?])", re.IGNORECASE)
_HIDDEN_ELEMENTS = ("script", "style")


def apply(
    record: Record,
    policy: Policy,
    count_tokens: Callable[[str], int] | None = None,
    language_of: Callable[[str, str], str] | None = None,
) -> Record | Dropped:
    """Returns the record with its language, or the first rule of the policy that it breaks.

    The rules are checked in a fixed order, cheap ones first: names and metadata, sizes and lines,
    characters, formats, contents. The text stays as it is; `pii.redact` changes it. Conversations
    break none of them.

    Args:
        record: the document; a language that it already has is kept.
        policy: the rules.
        count_tokens: returns the number of tokens of a text, for the rule `min_fertility`, which
          is off without it.
        language_of: returns the language of (path, text), "" if it is unknown; by default
          `languages.language_of`.
    """
    if not record.text or record.text.isspace():
        return Dropped(record.id, "empty", len(record.text), record.language)
    if not record.language:
        detect = language_of or languages.language_of
        record = record._replace(language=detect(record.path, record.text))
    # The rules are about source files; the JSON of a conversation is one long line.
    if record.language == conversations.LANGUAGE:
        return record
    reason = (
        _metadata_reason(record, policy)
        or _size_reason(record, policy)
        or _character_reason(record, policy)
        or _format_reason(record, policy)
        or _content_reason(record, policy, count_tokens)
    )
    if reason:
        return Dropped(record.id, reason, len(record.text), record.language)
    return record


def _metadata_reason(record: Record, policy: Policy) -> str:
    """Returns the rule about the file's name and repository that a record breaks, or ""."""
    if policy.languages and record.language not in policy.languages:
        return "language"
    if policy.excluded_names and has_name(record.path, policy.excluded_names):
        return "file_name"
    # Unknown stars are -1 and pass: most inputs have none.
    if 0 <= record.stars < policy.min_stars:
        return "stars"
    if not record.license:
        return "" if policy.unknown_license else "unknown_license"
    if policy.licenses and not is_licensed(record.license, policy.licenses):
        return "license"
    return ""


def _size_reason(record: Record, policy: Policy) -> str:
    """Returns the rule about sizes and lines that a record breaks, or ""."""
    lines = record.text.splitlines()
    if policy.marker_lines and is_marked_generated(lines[: policy.marker_lines]):
        return "generated"
    if policy.min_bytes or policy.max_bytes:
        # These bounds are published in bytes, those of lines and of data files in characters.
        size = byte_count(record.text)
        if size < policy.min_bytes:
            return "too_small"
        if policy.max_bytes and size > policy.max_bytes:
            return "too_large"
    if len(lines) < policy.min_lines:
        return "few_lines"
    rules = _extension_rules(record, policy)
    # Bounds for an extension replace those of the policy.
    max_line = _bound(rules.max_line, policy.max_line)
    if max_line and max(map(len, lines)) > max_line:
        return "long_line"
    max_mean_line = _bound(rules.max_mean_line, policy.max_mean_line)
    # Line breaks count too: the mean is over the characters of the document.
    if max_mean_line and len(record.text) > max_mean_line * len(lines):
        return "mean_line"
    return ""


def _character_reason(record: Record, policy: Policy) -> str:
    """Returns the rule about shares of characters that a record breaks, or ""."""
    rules = _extension_rules(record, policy)
    least = _bound(rules.min_alphanumeric, policy.min_alphanumeric)
    if least and alphanumeric_share(record.text) < least:
        return "alphanumeric"
    least = _bound(rules.min_alphabetic, policy.min_alphabetic)
    if least and alphabetic_share(record.text) < least:
        return "alphabetic"
    if policy.min_letters and is_data(record.text, policy.min_letters):
        return "letters"
    return ""


def _format_reason(record: Record, policy: Policy) -> str:
    """Returns the rule about XML, HTML or data files that a record breaks, or ""."""
    text = record.text
    if policy.drop_xml and has_xml_declaration(text):
        return "xml"
    if record.language == "HTML" and (policy.min_html_share or policy.min_html_characters):
        visible = len(visible_html(text))
        # Both bounds are exclusive, as published.
        if visible <= policy.min_html_share * len(text) or visible <= policy.min_html_characters:
            return "html"
    if record.language in ("JSON", "YAML"):
        if len(text) < policy.min_data_characters:
            return "data_size"
        if policy.max_data_characters and len(text) > policy.max_data_characters:
            return "data_size"
    return ""


def _content_reason(
    record: Record, policy: Policy, count_tokens: Callable[[str], int] | None
) -> str:
    """Returns the rule about syntax, comments or tokens that a record breaks, or ""."""
    text, language = record.text, record.language
    if policy.python3 and language == "Python" and not comments.is_python3(text):
        return "not_python3"
    if policy.min_comments or policy.max_comments < 1:
        share = comments.comment_share(text, language)
        # None is a language without a tokenizer of comments, in which nothing can be measured.
        if share is not None and share < policy.min_comments:
            return "few_comments"
        if share is not None and share > policy.max_comments:
            return "many_comments"
    least = policy.min_fertility.get(language, 0)
    # Characters per token: data and other languages fall into many short tokens.
    if count_tokens is not None and least and len(text) < least * count_tokens(text):
        return "fertility"
    return ""


def _extension_rules(record: Record, policy: Policy) -> ExtensionRules:
    """Returns the bounds of the policy for the extension of the record's file."""
    return policy.extensions.get(PurePosixPath(record.path).suffix.lower(), ExtensionRules())


def _bound(of_extension: float | None, of_policy: float) -> float:
    return of_policy if of_extension is None else of_extension


def has_name(path: str, patterns: Iterable[str]) -> bool:
    """Returns whether the file name of a path matches one of the shell patterns, in any case."""
    name = path.rpartition("/")[2].lower()
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in patterns)


def is_licensed(expression: str, licenses: Iterable[str]) -> bool:
    """Returns whether licenses, joined by `or` or `and` or listed with commas, are all allowed.

    A choice such as "mit or gpl-2.0" needs one allowed license, since that is the one chosen.
    """
    allowed = frozenset(licenses)
    # "or" binds weaker than "and": one choice is enough, and all of its parts must be allowed.
    for choice in re.split(r"\s+or\s+", expression.lower()):
        names = re.split(r"\s+and\s+|[,;\s]+", choice.replace("(", " ").replace(")", " ").strip())
        if all(name in allowed for name in names):
            return True
    return False


def is_marked_generated(lines: Iterable[str]) -> bool:
    """Returns whether lines hold a marker of generated files, such as "do not edit"."""
    return GENERATED_MARKER.search("\n".join(lines)) is not None


def byte_count(text: str) -> int:
    """Returns the size of a text in UTF-8."""
    return len(text) if text.isascii() else len(_encoded(text))


def alphanumeric_share(text: str) -> float:
    """Returns the share of letters and digits, of any script, among all characters."""
    return _share(text, _ALPHANUMERIC, str.isalnum)


def alphabetic_share(text: str) -> float:
    """Returns the share of letters, of any script, among all characters."""
    return _share(text, _ASCII_LETTERS, str.isalpha)


def is_data(text: str, min_letters: float) -> bool:
    """Returns whether letters are below a share of the visible bytes, as in tables of numbers."""
    visible = _encoded("".join(text.split()))
    # translate deletes the letters at the speed of C; those that are left are the others.
    return len(visible.translate(None, _LETTERS)) > (1 - min_letters) * len(visible)


def has_xml_declaration(text: str) -> bool:
    """Returns whether a text starts as XML does, after at most 100 characters."""
    return "<?xml version=" in text[:XML_CHARACTERS]


def visible_html(text: str) -> str:
    """Returns the text that a browser shows of HTML: no tags, comments, scripts and styles.

    The parser of Python's library takes time quadratic in the text for some malformed HTML, such as
    47 s for 50 kB of "<a ".
    """
    pieces = []
    position = 0
    # One pass from "<" to "<". Every step moves forward, so that the time is linear in the text.
    while (start := text.find("<", position)) >= 0:
        pieces.append(text[position:start])
        position = _end_of_markup(text, start)
        if position == start:  # a lone "<" is text
            pieces.append("<")
            position += 1
    pieces.append(text[position:])
    return html.unescape("".join(pieces))


def _end_of_markup(text: str, start: int) -> int:
    """Returns the end of the tag, comment or hidden element at `start`; `start` if it is none."""
    if text.startswith("<!--", start):
        return _after(text, "-->", start + 4)
    tag = _TAG.match(text, start)
    if tag is None:
        return start
    end = _after(text, ">", tag.end())
    name = (tag[1] or "").lower()
    # The content of a script may hold "<", so that only its closing tag ends it.
    if name in _HIDDEN_ELEMENTS and text[start + 1] != "/":
        closing = re.compile(f"</{name}", re.IGNORECASE).search(text, end)
        return _after(text, ">", closing.end()) if closing else len(text)
    return end


def _after(text: str, mark: str, start: int) -> int:
    """Returns the position after the next `mark`, the end of the text if there is none."""
    position = text.find(mark, start)
    return len(text) if position < 0 else position + len(mark)


def _share(text: str, ascii_members: bytes, is_member: Callable[[str], bool]) -> float:
    """Returns the share of characters that are members; 0 for an empty text.

    Bytes are counted many times as fast as characters, and most characters of code are ASCII.
    """
    data = text.encode("ascii", "ignore")
    members = len(data) - len(data.translate(None, ascii_members))
    if len(data) < len(text):
        members += sum(map(is_member, "".join(_NOT_ASCII.findall(text))))
    return members / max(len(text), 1)


def _encoded(text: str) -> bytes:
    # Text from JSON may hold lone surrogates.
    return text.encode(errors="surrogatepass")
