"""Finds keys, tokens, passwords and private keys in a text, as SantaCoder's redaction did.

Published: the plugins of detect-secrets but those for keywords, basic authentication and private
keys; a guard that the secret is gibberish; a guard for hashes: 32, 40 or 64 characters in a line
that names sha, md5, hash or byte, or a file with over 2 % of such lines.

We differ where the published rules lose secrets or change harmless text:
- Private keys go: the body between the BEGIN and END lines.
- Formats of vendors that detect-secrets lacks or finds in part are added (`_formats`). A format
  that is unmistakable needs no guard; by the published rules one "sha" in 50 lines keeps them all.
- Random values that are assigned to a name such as `api_key` go without quotes too.
- Hexadecimal strings go only where such a name is, since nearly all others are digests.
- Base64 strings in quotes go as published, but not in rows of them or where a document has many,
  since these are data.
- The detectors run on the text in memory, and only where a cheap test finds a candidate.
"""

from __future__ import annotations

import functools
import itertools
import re
import string
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from codellama_jax.data.prepare.redaction.gibberish import LEAST_MARKED_SCORE, is_gibberish

Span = tuple[int, int]

LONGEST_VALUE = 200  # characters of a value with a name; longer ones are data
LONGEST_UNNAMED = 100  # characters of a value without a name and a known format
MANY_VALUES = 5  # base64 strings without a name in a document, above which they are data
_CONTEXT = 80  # characters before a value in which its name is searched
_BEFORE, _AFTER = 60, 250  # characters around a value in which a known format is searched
_LEAST_NAMED_ENTROPY = 3.0  # bits per character

# Of the bytes of a text in Latin-1: "x" for those that values consist of, " " for all others.
_IN_VALUES = (string.ascii_letters + string.digits + "_+/-").encode()
_MARKS = bytes(ord("x") if byte in _IN_VALUES else ord(" ") for byte in range(256))
_RUN = b"x" * 16  # the shortest value
_HAS_DIGIT = re.compile("[0-9]")
_REST_OF_WORD = re.compile(r"[\w-]*")
_PADDING = re.compile("={0,2}")  # of base64
_NAME = (
    r"(?:(?:api|secret|access|auth|account|aws|client|private|service|encryption|signing|master|app"
    r"|db|application|consumer|database|deploy|license|shared)[_-]?key|token|secret|passw(?:or)?d"
    r"|passwd|pwd|passphrase|credentials?)"
)
# Ends where a value starts: `api_key = "`, `"token": "`, `TOKEN=`, `Bearer `, `--password `.
_NAMED = re.compile(
    rf"{_NAME}\w{{0,20}}[\"'`]?\]?\s{{0,4}}"
    r"(?:(?::=|=>|={1,3}|:)\s{0,4}[a-z@]{0,2}[\"'`]?|[,(]\s{0,4}[a-z@]{0,2}[\"'`])\Z"
    rf"|\b(?:bearer|basic|token)[ ]\Z|--[\w-]{{0,30}}{_NAME}[ ]\Z",
    re.IGNORECASE,
)
# Where the name of a password may end, in lower case, and what follows it: a value in quotes.
_PASSWORD_NAME = re.compile(r"api_?key|token|secret|passw|pwd|passphrase|credential")
_PASSWORD = re.compile(
    r"\w{0,20}[\"'`]?\]?\s{0,4}(?::=|=>|={1,3}|:)\s{0,4}([\"'])([^\s\"'\\<>{}()]{12,64})\1"
)
_HEXADECIMAL = re.compile(r"(?:0x)?[0-9a-f-]+|(?:0x)?[0-9A-F-]+")
_DIGEST = re.compile(
    r"sha-?\d|\bsha\b|md5|hash|digest|checksum|integrity|fingerprint|commit|revision|etag|byte",
    re.IGNORECASE,
)
_DIGEST_PREFIX = re.compile(r"sha\d{1,3}[-_:]", re.IGNORECASE)
_PUBLIC = re.compile(r"pub(?:lic)?[_-]?key", re.IGNORECASE)
_UUID = re.compile(r"[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"your|example|placeholder|change.?me|goes.?here|xxxx|insert|dummy", re.IGNORECASE
)
# How images, archives and documents start in base64.
_FILE_STARTS = ("iVBOR", "R0lGOD", "/9j/", "PHN2Zy", "UklGR", "JVBERi", "UEsDB", "H4sI", "AAAA")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_BEGIN = re.compile(r"-{4,5} ?BEGIN ([A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?) ?-{4,5}")
_BODY_WORD = re.compile(r"(\\[nrt])|[A-Za-z0-9+/=]+")
LONGEST_PRIVATE_KEY = 20_000  # characters


class Format(NamedTuple):
    """Secrets that are known by their form."""

    literals: tuple[str, ...]  # of which a text must hold one
    regex: re.Pattern
    guarded: bool = False  # must be gibberish too, since identifiers have this form


def find_keys(text: str) -> list[Span]:
    """Returns the (start, end) of the keys, tokens and passwords of a text, sorted, disjoint.

    Private keys are not among them: see `private_keys`.
    """
    values = list(_values(text))
    spans = [*_of_known_format(text, values), *_by_name_or_entropy(text, values)]
    spans += [*_web_tokens(text), *_passwords(text)]
    # Several detectors find parts of one key: joined, it is replaced once.
    return _merged(spans)


def _values(text: str) -> Iterator[Span]:
    """Yields the (start, end) of the random words of at least 16 characters."""
    # One byte per character, so that positions are those of the text; this is many times as fast
    # as a regular expression.
    marks = text.encode("latin-1", "replace").translate(_MARKS)
    end = 0
    while (start := marks.find(_RUN, end)) >= 0:
        end = marks.find(b" ", start)
        end = len(text) if end < 0 else end
        # The rest of a very long word does not change the decision.
        value = text[start : min(end, start + LONGEST_VALUE)]
        if _may_be_random(value) and is_gibberish(value, LEAST_MARKED_SCORE):
            yield start, end


def _may_be_random(value: str) -> bool:
    """Returns whether a word is not just letters of one case with separators, as most names are."""
    if _HAS_DIGIT.search(value) or ("_" not in value and "-" not in value):
        return True
    return value != value.lower() and value != value.upper()


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Returns the spans sorted, with those that overlap joined."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def private_keys(text: str) -> Iterator[Span]:
    """Yields the (start, end) of the bodies between the BEGIN and END lines of private keys.

    Code that only names these lines is no key: a body consists of long words of base64.
    """
    if "PRIVATE KEY" not in text:
        return
    position = 0
    while (begin := _BEGIN.search(text, position)) is not None:
        # A second BEGIN line ends the search: the first key was truncated.
        following = _BEGIN.search(text, begin.end(), begin.end() + LONGEST_PRIVATE_KEY)
        limit = following.start() if following else begin.end() + LONGEST_PRIVATE_KEY
        end = re.compile(f"-{{4,5}} ?END {begin[1]} ?-{{4,5}}").search(text, begin.end(), limit)
        position = begin.end()
        stop = end.start() if end else _end_of_base64(text, position, limit)
        if _is_key_body(text[position:stop]):
            yield position, stop
            position = stop


def key_body_words(body: str) -> list[Span]:
    """Returns the (start, end) of the words in the body of a private key, escapes left out."""
    return [word.span() for word in _BODY_WORD.finditer(body) if word[1] is None]


def _end_of_base64(text: str, start: int, limit: int) -> int:
    """Returns the end of the lines of base64 after a BEGIN line whose END is missing."""
    end = start
    for line in text[start:limit].splitlines(keepends=True):
        word = line.strip(" \t\r\n\"'+,;\\")
        # The rest of the BEGIN line itself may be empty.
        if word and not _BASE64.fullmatch(word.removesuffix("\\n")):
            break
        end += len(line)
    return end


def _is_key_body(body: str) -> bool:
    words = [end - start for start, end in key_body_words(body)]
    visible = len(re.sub(r"\\[nrt]|[\s\"'+,;:\\-]", "", body))
    long_words = sum(length for length in words if length >= 16)
    # One long word at least, and mostly long words: prose and code have neither.
    return max(words, default=0) >= 32 and long_words >= 0.5 * visible


def _of_known_format(text: str, values: Iterable[Span]) -> Iterator[Span]:
    """Yields the secrets of known formats around the values."""
    # Only around values, and merged, so that no character is searched twice for one format.
    windows = _merged((max(0, start - _BEFORE), end + _AFTER) for start, end in values)
    for (begin, stop), known in itertools.product(windows, _formats()):
        # The cheap test: text.find is many times as fast as an expression.
        if all(text.find(literal, begin, stop) < 0 for literal in known.literals):
            continue
        covered = begin
        for match in known.regex.finditer(text, begin, stop):
            # Some expressions of detect-secrets group the secret, others its prefix.
            group = 1 if match.lastindex and len(match[1]) >= len(_RUN) else 0
            start, end = match.span(group)
            if start < covered or _is_inside_word(text, start):
                continue
            if known.guarded and not is_gibberish(match[group]):
                continue
            covered = _end_of(_REST_OF_WORD, text, end)
            yield start, covered


def _end_of(pattern: re.Pattern, text: str, start: int) -> int:
    """Returns the end of the match at a position, the position itself if there is none."""
    match = pattern.match(text, start)
    return match.end() if match else start


def _is_inside_word(text: str, start: int) -> bool:
    """Returns whether a letter or digit precedes, as inside of base64, but not one of an escape."""
    before = text[max(0, start - 2) : start]
    return before[-1:].isalnum() and before[:1] != "\\"


_WEB_TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]{10,}\.[\w-]+(?:\.[\w-]*)?", re.ASCII)


def _web_tokens(text: str) -> Iterator[Span]:
    """Yields JSON web tokens with their signature, which the plugin's expression leaves out."""
    if "eyJ" not in text:
        return
    from detect_secrets.plugins.jwt import JwtTokenDetector

    for match in _WEB_TOKEN.finditer(text):
        header = ".".join(match[0].split(".")[:2])
        if JwtTokenDetector.is_formally_valid(header):
            yield match.span()


def _by_name_or_entropy(text: str, values: Iterable[Span]) -> Iterator[Span]:
    """Yields random values that have the name of a secret, or are in quotes."""
    unnamed: list[Span] = []
    for start, end in values:
        if end - start > LONGEST_VALUE:
            continue
        end = _end_of(_PADDING, text, end)
        value = text[start:end]
        if _is_harmless(value):
            continue
        line = _line_before(text, start)
        # A call, an index or an attribute after the value makes it an expression, not a secret.
        if _NAMED.search(line) and text[end : end + 1] not in ("(", "[", "."):
            if not _is_digest(value, line) and _entropy(value) >= _LEAST_NAMED_ENTROPY:
                yield start, end
        elif _is_quoted(text, start, end) and _is_random_base64(value, line):
            unnamed.append((start, end))
    # Many such strings are a table of data; a file holds few keys.
    if len(unnamed) <= MANY_VALUES:
        yield from _alone(text, unnamed)


def _passwords(text: str) -> Iterator[Span]:
    """Yields random values in quotes that hold more than letters and digits, after a name."""
    lower = text.lower()
    if len(lower) != len(text):  # a few capitals have two small letters
        lower = text
    # The name is searched first: the expression of the value alone would be tried at every quote.
    for name in _PASSWORD_NAME.finditer(lower):
        match = _PASSWORD.match(text, name.end())
        if match and _has_all_kinds(match[2]) and is_gibberish(match[2], LEAST_MARKED_SCORE):
            yield match.span(2)


def _has_all_kinds(value: str) -> bool:
    kinds = (str.isdigit, str.islower, str.isupper)
    return not value.isalnum() and all(any(map(kind, value)) for kind in kinds)


def _line_before(text: str, start: int) -> str:
    """Returns the end of the line before a position, at most _CONTEXT characters."""
    before = text[max(0, start - _CONTEXT) : start]
    return before[before.rfind("\n") + 1 :]


def _is_quoted(text: str, start: int, end: int) -> bool:
    return start > 0 and text[start - 1] in "\"'" and text[end : end + 1] == text[start - 1]


def _is_harmless(value: str) -> bool:
    """Returns whether a value is an id, a placeholder or a sequence such as an alphabet."""
    if _UUID.search(value) or _PLACEHOLDER.search(value):
        return True
    # Neighbours in the alphabet or among digits, as in "abcdefgh" or "012345".
    following = sum(abs(ord(b) - ord(a)) == 1 for a, b in itertools.pairwise(value))
    return following > 0.3 * len(value)


def _is_digest(value: str, line: str) -> bool:
    """Returns whether a value is a digest by its prefix or by its length and line."""
    if _DIGEST_PREFIX.match(value) or _PUBLIC.search(line):
        return True
    return len(value) in (32, 40, 56, 64, 96, 128) and _DIGEST.search(line) is not None


def _is_random_base64(value: str, line: str) -> bool:
    """Returns whether a value in quotes is random by the base64 plugin, and no digest or file."""
    if not 23 <= len(value) <= LONGEST_UNNAMED or not is_gibberish(value):
        return False
    if _HEXADECIMAL.fullmatch(value) or value.startswith(_FILE_STARTS) or "AAA" in value:
        return False
    if _is_digest(value, line) or _DIGEST.search(line):
        return False
    plugin = _base64_plugin()
    return plugin.calculate_shannon_entropy(value) > plugin.entropy_limit


def _alone(text: str, spans: list[Span]) -> Iterator[Span]:
    """Yields the spans that have no other span in their line or a neighbouring one."""
    numbers = [text.count("\n", 0, start) for start, _ in spans]
    for i, span in enumerate(spans):
        others = numbers[:i] + numbers[i + 1 :]
        if all(abs(number - numbers[i]) > 1 for number in others):
            yield span


def _entropy(value: str) -> float:
    return _base64_plugin().calculate_shannon_entropy(value)


@functools.cache
def _base64_plugin() -> Any:
    from detect_secrets.plugins.high_entropy_strings import Base64HighEntropyString

    return Base64HighEntropyString()


@functools.cache
def _formats() -> tuple[Format, ...]:
    """Returns the known formats: those of detect-secrets' plugins, and those that it lacks."""
    from detect_secrets.plugins import artifactory, aws, discord, github_token, gitlab_token
    from detect_secrets.plugins import mailchimp, openai, pypi_token, sendgrid, slack  # isort: skip
    from detect_secrets.plugins import square_oauth, stripe, twilio  # isort: skip

    encrypted = tuple(f"AP{digit}" for digit in "0123456789ABCDEF")
    plugins = (
        (artifactory.ArtifactoryDetector, ("AKC", *encrypted), True),
        (aws.AWSKeyDetector, ("A3T", "ABIA", "ACCA", "AKIA", "ASIA", "aws", "AWS"), False),
        (discord.DiscordBotTokenDetector, (".",), True),
        (github_token.GitHubTokenDetector, ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), False),
        (gitlab_token.GitLabTokenDetector, ("gl", "GR1348941"), False),
        (mailchimp.MailchimpDetector, ("-us",), True),
        (openai.OpenAIDetector, ("T3BlbkFJ",), False),
        (pypi_token.PypiTokenDetector, ("pypi-Ag",), False),
        (sendgrid.SendGridDetector, ("SG.",), False),
        (slack.SlackDetector, ("xox",), False),
        (square_oauth.SquareOAuthDetector, ("sq0csp-",), False),
        (stripe.StripeDetector, ("k_live_",), False),
        (twilio.TwilioKeyDetector, ("AC", "SK"), True),
    )
    formats = [
        Format(literals, regex, guarded)
        for plugin, literals, guarded in plugins
        for regex in plugin.denylist
        if "hooks" not in regex.pattern  # replaces the address of the service too
    ]
    additional = (
        (("AccountKey=", "AccessKey="), r"Acc(?:ount|ess)Key=([A-Za-z0-9+/]{40,88}={0,2})"),
        (("Q~",), r"(?<!\w)[\w~.]{3}\dQ~[\w~.-]{31,34}"),
        (("hooks.slack.com",), r"hooks\.slack\.com/services/(T\w+/B\w+/\w+)"),
        (("AIza",), r"AIza[\w-]{35}"),
        (("GOCSPX-", "ya29."), r"GOCSPX-[\w-]{28}|ya29\.[\w-]{20,}"),
        (("github_pat_",), r"github_pat_\w{82}"),
        (("npm_",), r"npm_[A-Za-z0-9]{36}"),
        (("_authToken=",), r"_authToken=\s{0,4}([A-Fa-f0-9-]{36})"),
        (("k_test_", "whsec_"), r"[rs]k_test_[0-9a-zA-Z]{24}|whsec_[\w+/]{24,64}"),
        (("xapp-", "xoxe"), r"xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]+|xoxe[.-][\w.-]{20,}"),
        (("sk-",), r"sk-(?:ant-|proj-)[\w-]{40,}|sk-[A-Za-z0-9]{48}"),
        (("hf_",), r"(?<!\w)hf_[A-Za-z]{34}"),
        (("dop_v1_", "doo_v1_"), r"do[op]_v1_[a-f0-9]{64}"),
        (("shpat_", "shpss_"), r"shp(?:at|ss)_[a-fA-F0-9]{32}"),
        ((":AA",), r"(?<!\d)\d{8,10}:AA[\w-]{33}"),
    )
    formats += [Format(literals, re.compile(regex, re.ASCII)) for literals, regex in additional]
    return tuple(formats)
