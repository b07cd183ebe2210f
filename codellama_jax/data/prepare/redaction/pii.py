"""Replaces e-mail addresses, IP addresses and keys in a text, as SantaCoder's redaction did.

Published (BigCode's first version): addresses by regular expressions, with guards for version
numbers; keys by detect-secrets (see secrets.py). Private IP addresses and those of 14 public DNS
servers stay. An e-mail is replaced by an invented one, an IP address by a private one, a key by 32
random characters, each drawn from a handful; the same secret gets the same replacement.

We differ in these points:
- The replacement is chosen by a hash of the secret instead of at random, so that it is the same in
  every process. A handful of them reveals little about the secret, unlike a hash of it.
- Two secrets with nothing between them stay so; the published code writes a space there.
- E-mail addresses of the reserved domains example.com, .org and .net stay.
- The letter of an escape in the string of a program, as of "\\n", is no part of an address.
- IP addresses are found after characters such as "=" and "/" too, but not in a name with a version.
  Networks such as 52.0.0.0/8 stay. Three single digits, not only four, make a version of a number
  without "dns" or "server" near it. IPv6 addresses must be in 2000::/3, the only range that is
  assigned: C++ has many names like a::b.

Redacting a redacted text changes nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator

from codellama_jax.data.prepare.redaction import secrets

_CHOICES = 10  # replacements for e-mail addresses and keys
_CONTEXT = 100  # characters around a number in which "dns" or "server" makes it an address
_LOCAL = 64  # characters before the "@" of an address, the longest that is allowed

_KEPT_IPS = frozenset(
    ipaddress.ip_address(address)
    for address in (
        *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112"),
        *("208.67.222.222", "208.67.220.220", "8.26.56.26", "8.20.247.20", "76.76.19.19"),
        *("76.223.122.150", "94.140.14.14", "94.140.15.15"),
    )
)
_IPV4_REPLACEMENTS = (
    "10.31.16.172",
    "10.58.3.201",
    "172.20.17.32",
    "192.168.64.12",
    "192.168.7.45",
)
_IPV6_REPLACEMENTS = (
    "fd4c:91e7:0b3a::17",
    "fd4c:91e7:0b3a:2::5a",
    "fd8e:6d20:f5c1:9::c3",
    "fdb2:07a4:e81d::e0:71",
    "fdd9:35f8:4a6e:1::2b",
)

# After the "@": the domain with a last part that starts with a letter.
_DOMAIN = re.compile(
    r"@([^\s@!?;,/:)('\"<>\[\]{}]{1,253}\.[^\W\d_]\w+)(?=$|[\s,?!;:)('\".<>\]}\\/&|`])"
)
_LOCAL_PART = re.compile(r"[^\s@?!;,:)('\"<>=\[\]{}|`\\/&]+\Z")
_RESERVED_DOMAIN = re.compile(
    r"(?:.*\.)?example\.(?:com|org|net)|(?:.*\.)?[^.]+\.example", re.IGNORECASE
)
_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w-]|\.\d|/\d)")
_IPV6_PART = re.compile(r":[0-9a-fA-F]{0,4}:")
_IPV6 = re.compile(r"[0-9a-fA-F:.]{2,45}")
_OBJECT_IDENTIFIERS = ("1.3.", "2.5.4.", "2.5.29.")  # of X.500, such as "2.5.29.15"
# Before a number: a version of a package, or the name of a program with a slash.
_VERSION_BEFORE = re.compile(
    r"(?:version|release|(?<![a-z])ver\.?|[=~!<>]=|[\^~<>@])[\"')\]]*\s*[:=]?\s*[\"'(\[]*\Z"
    r"|[A-Za-z]/\Z",
    re.IGNORECASE,
)


def redact(text: str, kinds: Iterable[str]) -> tuple[str, dict[str, int]]:
    """Returns the text with its personal data replaced, and the number of replacements by kind.

    Args:
        text: any text.
        kinds: of personal data: "email", "ip_address", "key".
    """
    counts: dict[str, int] = {}
    for kind, redact_kind in _STEPS.items():
        if kind in kinds:
            text, count = redact_kind(text)
            if count:
                counts[kind] = count
    return text, counts


def _redact_keys(text: str) -> tuple[str, int]:
    text, private = _replaced(text, secrets.private_keys(text), _key_body)
    text, others = _replaced(text, secrets.find_keys(text), _key)
    return text, private + others


def _redact_emails(text: str) -> tuple[str, int]:
    return _replaced(text, find_emails(text), _email)


def _redact_ips(text: str) -> tuple[str, int]:
    text, version4 = _replaced(text, find_ipv4(text), _ipv4)
    text, version6 = _replaced(text, find_ipv6(text), _ipv6)
    return text, version4 + version6


_STEPS = {"key": _redact_keys, "email": _redact_emails, "ip_address": _redact_ips}


def find_emails(text: str) -> Iterator[secrets.Span]:
    """Yields the (start, end) of e-mail addresses."""
    end = 0
    # The search starts at the "@": nearly every other character could begin a local part, and would
    # have to be tried.
    for domain in _DOMAIN.finditer(text):
        # At most 64 characters, and none of the address before: two addresses never share a part.
        window = text[max(end, domain.start() - _LOCAL) : domain.start()]
        local = _LOCAL_PART.search(window)
        if local and not _RESERVED_DOMAIN.fullmatch(domain[1]):
            start = domain.start() - len(local[0])
            # The letter of an escape such as "\n" is no part of the address after it.
            start += _is_escape(text, start)
            end = domain.end()
            if start < domain.start():
                yield start, end


def find_ipv4(text: str) -> Iterator[secrets.Span]:
    """Yields the (start, end) of public IPv4 addresses that are not version numbers."""
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 1) : match.start()]
        is_part = before == "-" or _is_word(before)  # of a longer number or a name
        if is_part and not _is_escape(text, match.start() - 1):
            continue
        if _is_public(match[0]) and not _is_version(text, *match.span()):
            yield match.span()


def find_ipv6(text: str) -> Iterator[secrets.Span]:
    """Yields the (start, end) of public IPv6 addresses."""
    end = 0
    # Only where two colons are close together: most texts have no such place.
    for part in _IPV6_PART.finditer(text):
        if part.start() < end:
            continue
        start = part.start()
        # The expression matches from the first colon: the digits before it belong to the address
        # too.
        while start > max(0, part.start() - 4) and text[start - 1] in "0123456789abcdefABCDEF":
            start -= 1
        match = _IPV6.match(text, start)
        if match is None:
            continue
        # A full stop or colon after an address ends a sentence, but "::" at the end is part of it.
        address = match[0].rstrip(".:") if not match[0].endswith("::") else match[0]
        end = start + len(address)
        neighbours = text[max(0, start - 1) : start], text[end : end + 1]
        is_network = re.match(r"/\d", text[end : end + 2]) is not None
        if not is_network and not any(map(_is_word, neighbours)) and _is_public(address):
            yield start, end


def _is_escape(text: str, position: int) -> bool:
    """Returns whether a position is that of the letter of a line break or tab in a string."""
    return position > 0 and text[position - 1] == "\\" and text[position] in "nrt"


def _is_word(character: str) -> bool:
    return character.isalnum() or character in ("_", ":", ".")


def _is_public(address: str) -> bool:
    """Returns whether an address is valid, assigned to someone, and no well-known DNS server."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # such as 33.01.33.33
        return False
    # The first three bits of 2000::/3 are 001.
    if parsed.version == 6 and parsed.packed[0] >> 5 != 1:  # outside of 2000::/3
        return False
    # In markup a number may end with "::", such as "RFC 2396::".
    if parsed.version == 6 and len(address.replace("::", ":").strip(":").split(":")) < 3:
        return False
    return parsed.is_global and not parsed.is_multicast and parsed not in _KEPT_IPS


def _is_version(text: str, start: int, end: int) -> bool:
    """Returns whether four numbers are a version or the name of an object in a standard.

    A version has nearly only single digits, or follows the name of what it is the version of.
    """
    if text.startswith(_OBJECT_IDENTIFIERS, start):
        return True
    single_digits = sum(len(number) == 1 for number in text[start:end].split("."))
    if single_digits >= 3:
        around = text[max(0, start - _CONTEXT) : end + _CONTEXT].lower()
        return "dns" not in around and "server" not in around
    return _VERSION_BEFORE.search(text[max(0, start - 30) : start]) is not None


def _replaced(
    text: str, spans: Iterable[secrets.Span], replacement: Callable[[str], str]
) -> tuple[str, int]:
    """Returns the text with `replacement(secret)` in the place of each secret, and their number."""
    pieces = []
    position = count = 0
    for start, end in spans:
        secret = text[start:end]
        new = replacement(secret)
        # Redacting twice must change nothing: a secret that is a replacement already stays.
        if new != secret:
            pieces += [text[position:start], new]
            position = end
            count += 1
    pieces.append(text[position:])
    return "".join(pieces), count


def _choice(secret: str, choices: int) -> int:
    # The hash chooses one of a few replacements. Its own digits would allow to test guesses.
    digest = hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % choices


def _letters(name: str, length: int, alphabet: str) -> str:
    """Returns letters that look random and depend only on `name`."""
    digest = hashlib.sha512(name.encode()).digest()
    return "".join(alphabet[byte % len(alphabet)] for byte in digest[:length])


_LOWER = "abcdefghijklmnopqrstuvwxyz"
_KEYS = tuple(_letters(f"key {i}", 32, _LOWER + "0123456789") for i in range(_CHOICES))
_EMAILS = tuple(_letters(f"email {i}", 5, _LOWER) + "@example.com" for i in range(_CHOICES))


def _key(secret: str) -> str:
    if any(key in secret for key in _KEYS):  # redacted before
        return secret
    return _KEYS[_choice(secret, _CHOICES)]


def _key_body(body: str) -> str:
    """Returns the body of a private key with one word, and the layout around it."""
    words = secrets.key_body_words(body)
    secret = "".join(body[start:end] for start, end in words)
    if any(key in secret for key in _KEYS):  # redacted before
        return body
    # The longest word takes the replacement and the others go: a body has no meaning left, and the
    # line breaks around it stay valid for the language of the file.
    first = max(words, key=lambda span: span[1] - span[0])
    pieces = []
    position = 0
    for start, end in words:
        pieces.append(body[position:start])
        if (start, end) == first:
            pieces.append(_KEYS[_choice(secret, _CHOICES)])
        position = end
    return "".join(pieces) + body[position:]


def _email(secret: str) -> str:
    return _EMAILS[_choice(secret, _CHOICES)]


def _ipv4(secret: str) -> str:
    return _IPV4_REPLACEMENTS[_choice(secret, len(_IPV4_REPLACEMENTS))]


def _ipv6(secret: str) -> str:
    return _IPV6_REPLACEMENTS[_choice(secret, len(_IPV6_REPLACEMENTS))]
