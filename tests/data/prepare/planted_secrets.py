"""Invented secrets in the formats of real services, and harmless strings that look like them."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable

UPPER = string.ascii_uppercase + string.digits
LOWER = string.ascii_lowercase + string.digits
BASE62 = string.ascii_letters + string.digits
BASE64 = BASE62 + "+/"
URL_SAFE = BASE62 + "-_"
SYMBOLS = BASE62 + "!#$%^&*-_=+?@"


def _draw(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def _digits(rng: random.Random, length: int) -> str:
    return _draw(rng, string.digits, length)


def _url_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _web_token(rng: random.Random) -> str:
    header = json.dumps({"alg": "HS256", "typ": "JWT"}).encode()
    claims = json.dumps({"sub": _digits(rng, 10), "iat": rng.randrange(10**9)}).encode()
    return ".".join(map(_url_base64, (header, claims, rng.randbytes(32))))


def _pem(rng: random.Random, name: str, size: int) -> str:
    body = base64.b64encode(rng.randbytes(size)).decode()
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    return "\n".join((f"-----BEGIN {name}-----", *lines, f"-----END {name}-----"))


def _pypi(rng: random.Random) -> str:
    return "pypi-AgEIcHlwaS5vcmc" + _draw(rng, URL_SAFE, 100)


def _slack(rng: random.Random) -> str:
    return f"xoxb-{_digits(rng, 12)}-{_digits(rng, 13)}-{_draw(rng, BASE62, 24)}"


def _slack_hook(rng: random.Random) -> str:
    parts = "T" + _draw(rng, UPPER, 8), "B" + _draw(rng, UPPER, 10), _draw(rng, BASE62, 24)
    return "/".join(parts)


def _openai(rng: random.Random) -> str:
    return f"sk-{_draw(rng, BASE62, 20)}T3BlbkFJ{_draw(rng, BASE62, 20)}"


def _hex(length: int) -> Callable[[random.Random], str]:
    return lambda rng: _draw(rng, "0123456789abcdef", length)


def _random(alphabet: str, length: int, prefix: str = "") -> Callable[[random.Random], str]:
    return lambda rng: prefix + _draw(rng, alphabet, length)


# A template of the code around the secret, and the secret. Two of each are planted.
_SECRETS: tuple[tuple[str, Callable[[random.Random], str]], ...] = (
    ('AWS_ACCESS_KEY_ID = "{}"', _random(UPPER, 16, "AKIA")),
    ("aws_access_key_id={}", _random(UPPER, 16, "ASIA")),
    ('aws_secret_access_key = "{}"', _random(BASE64, 40)),
    ("export AWS_SECRET_ACCESS_KEY={}", _random(BASE62, 40)),
    ('client = Github("{}")', _random(BASE62, 36, "ghp_")),
    ("git clone https://{}@github.com/user/repository", _random(BASE62, 36, "gho_")),
    ('GITHUB = "{}"', _random(BASE62 + "_", 82, "github_pat_")),
    ("gitlab: {}", _random(URL_SAFE[:-2], 20, "glpat-")),
    ('WebClient("{}")', _slack),
    ('url = "https://hooks.slack.com/services/{}"', _slack_hook),
    ('stripe.api_key = "{}"', _random(BASE62, 24, "sk_live_")),
    ("STRIPE={}", _random(BASE62, 24, "rk_live_")),
    ('stripe.key = "{}"', _random(BASE62, 24, "sk_test_")),
    ("Authorization: Bearer {}", _web_token),
    ('session = "{}"', _web_token),
    ("{}", lambda rng: _pem(rng, "RSA PRIVATE KEY", 600)),
    ("{}", lambda rng: _pem(rng, "PRIVATE KEY", 1200)),
    ("{}", lambda rng: _pem(rng, "OPENSSH PRIVATE KEY", 300)),
    ("{}", lambda rng: _pem(rng, "EC PRIVATE KEY", 118)),
    ("<script src='https://maps.googleapis.com/?key={}'>", _random(URL_SAFE, 35, "AIza")),
    ("//registry.npmjs.org/:_authToken={}", _random(BASE62, 36, "npm_")),
    ('NPM = "{}"', _random(BASE62, 36, "npm_")),
    ("password: {}", _pypi),
    ('sid = "{}"', _random(LOWER, 32, "AC")),
    ('twilio("{}")', _random(LOWER, 32, "SK")),
    ('auth_token = "{}"', _hex(32)),
    (
        'SendGrid("{}")',
        lambda rng: f"SG.{_draw(rng, URL_SAFE, 22)}.{_draw(rng, URL_SAFE, 43)}",
    ),
    ("DefaultEndpointsProtocol=https;AccountKey={};", _random(BASE64, 86)),
    ('CLIENT_SECRET = "{}"', lambda rng: f"{_draw(rng, BASE62, 3)}8Q~{_draw(rng, URL_SAFE, 34)}"),
    ('mailchimp = "{}-us12"', _hex(32)),
    ('openai.api_key = "{}"', _openai),
    ('HfApi(token="{}")', _random(string.ascii_letters, 34, "hf_")),
    ('bot.run("{}")', lambda rng: f"{_digits(rng, 9)}:AA{_draw(rng, URL_SAFE, 33)}"),
    ('api_key = "{}"', _random(BASE62, 32)),
    ("API_KEY={}", _random(LOWER, 24)),
    ('  "apiKey": "{}",', _random(URL_SAFE, 39)),
    ("api-key: {}", _random(BASE62, 40)),
    ('token = "{}"', _random(LOWER, 40)),
    ("'token' => '{}',", _random(BASE62, 20)),
    ("TOKEN={}", _random(URL_SAFE, 43)),
    ('password = "{}"', _random(BASE62, 16)),
    ('"password": "{}"', _random(SYMBOLS, 20)),
    ("DB_PASSWORD={}", _random(BASE62, 24)),
    ("client_secret: '{}'", _random(URL_SAFE, 24)),
    ("secret_key = b'{}'", _random(BASE64, 44)),
    ("ENCRYPTION_KEY={}", _hex(64)),
    ('String secret = "{}";', _hex(40)),
    ("curl --token {} https://api.service.net", _random(BASE62, 32)),
    ('X = "{}"', _random(BASE62, 48)),
    ('connect("{}")', _random(BASE64, 44)),
)


def planted_secrets() -> list[tuple[str, str]]:
    """Returns 100 pairs of a secret and a document of code that holds it once."""
    rng = random.Random(20)
    pairs = []
    for template, secret_of in _SECRETS * 2:
        secret = secret_of(rng)
        before = "import os\n\n# Connects to the service.\n"
        pairs.append((secret, before + template.format(secret) + "\nprint(os.name)\n"))
    return pairs


def _digest_lines(rng: random.Random) -> list[str]:
    lines = []
    for bits in (128, 160, 256, 512):
        digest = rng.randbytes(bits // 8).hex()
        lines += [
            f'    rev = "{digest}"',
            f"{digest}  archive-{bits}.tar.gz",
            f'assert digest(data) == "{digest}"',
            f'"sha": "{digest.upper()}",',
        ]
    return lines


def _integrity_lines(rng: random.Random) -> list[str]:
    value = base64.b64encode(rng.randbytes(64)).decode()
    short = base64.b64encode(rng.randbytes(32)).decode()
    return [
        f'      "integrity": "sha512-{value}",',
        f"  integrity sha512-{value}",
        f"<script src='a.js' integrity='sha384-{value[:64]}'></script>",
        f"github.com/user/module v1.2.3 h1:{short}",
        f'checksum = "{rng.randbytes(32).hex()}"',
        f'  "sha256:{rng.randbytes(32).hex()}"',
        f"FROM image@sha256:{rng.randbytes(32).hex()}",
        f"    --hash=sha256:{rng.randbytes(32).hex()}",
    ]


def _uuid_lines(rng: random.Random) -> list[str]:
    lines = []
    for form in ('ID = "{}"', "guid: {}", "[Guid('{}')]", "<Project>{{{}}}</Project>", '"{}",'):
        digits = rng.randbytes(16).hex()
        parts = digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]
        uuid = "-".join(parts)
        lines += [form.format(uuid), form.format(uuid.upper())]
    return lines


def _image_documents(rng: random.Random) -> list[str]:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    data = base64.b64encode(png + rng.randbytes(600)).decode()
    small = base64.b64encode(png + rng.randbytes(80)).decode()
    rows = "\n".join(f'    "{data[i : i + 76]}"' for i in range(0, len(data), 76))
    return [
        f'<img src="data:image/png;base64,{data}">',
        f"ICON = (\n{rows}\n)",
        f'ICON = "{small}"',
        f'ICON = b"""\n{data}\n"""',
        f"background: url(data:image/png;base64,{small});",
        f'  "image/png": "{data}",',
    ]


_PLAIN = """
COLOURS = ["#a1b2c3", "#00ff7f", "#C0FFEE"]
color: rgba(18, 52, 86, 0.5);
from organization.department.project.module_v2.submodule import Implementation
import com.organization.department.project.implementation.Factory2Impl;
import { Component2 } from "@organization/design-system/components/v2/Button";
#include "third_party/abseil-cpp/absl/container/internal/raw_hash_set_v2.h"
AbstractSingletonProxyFactoryBean2Implementation instance = create();
const MAX_NUMBER_OF_CONCURRENT_CONNECTIONS_V2 = 100;
def test_convert_float32_to_bfloat16_rounds_to_nearest_even_for_subnormals():
token = "get_authentication_token_from_environment"
password = "enter_your_password_here"
api_key = os.environ["SERVICE_API_KEY_VERSION_2"]
api_key = "YOUR_API_KEY_GOES_HERE_123"
api_key="<your-api-key-goes-here>"
secret_key = "change-me-in-production-please"
token = "${{ secrets.REGISTRY_DEPLOYMENT_TOKEN }}"
password: "{{ vault_database_password_production }}"
tokenizer = "meta-llama/CodeLlama-7b-Instruct-hf"
token_type = "urn:ietf:params:oauth:token-type:access_token"
primary_key = "organization_department_employee_id"
cache_key = "user_profile_thumbnail_256x256"
keyboard = "qwertyuiop-asdfghjkl-zxcvbnm"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
HEX = "0123456789abcdef0123456789abcdef"
key = "000102030405060708090a0b0c0d0e0f"
key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
plaintext = "6bc1bee22e409f96e93d7e117393172a"
expected = 0x9E3779B97F4A7C15F39CC0605CEDC835
PI = "3.14159265358979323846264338327950288419716939937510"
prime = 115792089237316195423570985008687907853269984665640564039457584007908834671663
VERSION = "1.2.3.4"
version = "10.15.7.212"
package==4.21.12.15
Chrome/91.12.44.124 Safari/14.1.22.3
tzdata-2024.1.13.22-py3-none-any.whl
OID = "1.3.6.1.4.1.311.21.20"
HOST = "127.0.0.1"
DNS = ["8.8.8.8", "1.1.1.1"]
GATEWAY = "192.168.1.254"
mac = "00:1b:63:84:45:e6"
start, end = "2024-01-31T12:34:56Z", "12:34:56.789"
std::vector<abc::def> values = a::b::c(d::e);
values = items[1::2] + items[::3]
contact = "someone@example.com"
@property
@decorator.with_arguments(timeout=30)
x = left @ right.transpose
DOI: 10.1145/3442188.3445922
ISBN 978-3-16-148410-0
phone = "+49 30 1234567890"
IBAN = "DE89 3704 0044 0532 0130 00"
url = "https://github.com/organization/repository/blob/main/src/module_v2/file.py#L10-L20"
path = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30"
x = "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ"
regex = r"[A-Za-z0-9_+/-]{16,}={0,2}"
u = "\\u00e9\\u00e8\\u00ea\\u00eb\\u4e2d\\u6587"
format = "{:>10}{:<20}{:^30}"
ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 user
PublicKeyToken=b77a5c561934e089
public_key = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"
"""


def innocent_lines() -> list[str]:
    """Returns 100 texts that hold no secret."""
    rng = random.Random(21)
    plain = [line for line in _PLAIN.splitlines() if line]
    groups = _digest_lines(rng), _integrity_lines(rng), _uuid_lines(rng), _image_documents(rng)
    return [text for group in (*groups, plain) for text in group][:100]
