"""What each published policy does with each planted file, and that policies check themselves."""

import dataclasses
import json

import planted_files
import planted_secrets
import pytest

from codellama_jax.checked import FieldError, check_all, from_dict
from codellama_jax.data.prepare.filters import rules as filters
from codellama_jax.data.prepare.policies import (
    CODEGEEX_LANGUAGES,
    POLICIES,
    ExtensionRules,
    NearDuplicates,
    Policy,
)
from codellama_jax.data.prepare.preparation import VERSION
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.data.prepare.redaction import pii
from codellama_jax.data.prepare.stages import fingerprint

# "keep", "redacted" where personal data is replaced, or the name of the rule that is broken.
OUTCOMES = """
file                              code_llama      codex           codegeex        starcoder       pangu_coder
clean.py                          keep            keep            keep            keep            keep
clean.js                          keep            language        keep            keep            language
clean.java                        keep            language        keep            keep            language
crlf.py                           keep            keep            keep            keep            keep
old_mac_lines.py                  keep            keep            keep            keep            keep
bom.py                            keep            keep            keep            keep            keep
tabs.py                           keep            keep            keep            keep            keep
no_final_newline.py               keep            keep            keep            keep            keep
form_feed.py                      keep            keep            keep            keep            keep
unicode_names.py                  keep            keep            keep            keep            keep
chinese_comments.py               keep            keep            keep            keep            keep
emoji.py                          keep            keep            keep            keep            keep
shebang.py                        keep            keep            keep            keep            keep
versions.py                       keep            keep            keep            keep            keep
colours.py                        keep            keep            keep            keep            keep
mentions_generated.py             keep            keep            keep            keep            keep
long_string.py                    keep            keep            keep            keep            keep
empty.py                          empty           empty           empty           empty           empty
blank.py                          empty           empty           empty           empty           empty
pkg/__init__.py                   empty           empty           empty           empty           empty
pkg/init_with_import/__init__.py  keep            keep            too_small       keep            keep
one_line.py                       keep            keep            too_small       keep            keep
pkg/setup.py                      keep            keep            too_small       keep            keep
comment_only.py                   keep            keep            keep            keep            keep
python2.py                        keep            keep            keep            keep            not_python3
broken.py                         keep            keep            keep            keep            not_python3
merge_conflict.py                 keep            keep            keep            keep            not_python3
nested.py                         keep            keep            keep            keep            not_python3
nul.py                            keep            keep            keep            keep            not_python3
stations_pb2.py                   generated       generated       generated       keep            keep
marked.py                         generated       generated       generated       keep            keep
automatic.js                      generated       language        generated       keep            language
thrift.java                       generated       language        generated       keep            language
late_marker.py                    keep            keep            keep            keep            keep
minified.js                       long_line       language        mean_line       long_line       language
one_long_line.py                  long_line       long_line       keep            long_line       long_line
line_of_1000.py                   keep            keep            keep            keep            long_line
line_of_999.py                    keep            keep            keep            keep            keep
long_mean.py                      mean_line       mean_line       mean_line       mean_line       mean_line
bundle.css                        long_line       language        mean_line       long_line       language
numbers.py                        letters         keep            alphabetic      keep            keep
hex_table.c                       letters         language        alphabetic      keep            language
base64.py                         keep            keep            keep            keep            keep
base64_one_line.py                long_line       long_line       mean_line       long_line       long_line
punctuation.py                    letters         alphanumeric    alphabetic      alphanumeric    keep
digests.py                        keep            keep            alphabetic      keep            keep
table.csv                         letters         language        language        keep            language
page.html                         keep            language        keep            keep            language
scripts.html                      keep            language        keep            html            language
short.html                        keep            language        too_small       html            language
layout.xml                        keep            language        language        xml             language
late_xml.py                       keep            keep            keep            keep            keep
image.svg                         letters         language        language        keep            language
package-lock.json                 keep            language        language        data_size       language
settings.json                     keep            language        language        keep            language
tiny.json                         keep            language        language        alphabetic      language
numbers.json                      letters         language        language        alphabetic      language
config.yaml                       keep            language        language        keep            language
large.yml                         keep            language        language        data_size       language
notebook.ipynb                    keep            language        language        keep            language
README.md                         long_line       language        language        keep            language
LICENSE                           keep            language        language        keep            language
notes.txt                         mean_line       language        language        mean_line       language
schema.sql                        long_line       language        mean_line       keep            language
page.aux                          keep            language        keep            file_name       language
aws_key.py                        keep            keep            keep            redacted        keep
private_key.py                    keep            keep            keep            redacted        keep
author.py                         keep            keep            keep            redacted        keep
server.py                         keep            keep            keep            redacted        keep
local_server.py                   keep            keep            keep            keep            keep
no_stars.py                       keep            keep            stars           keep            keep
unknown_stars.py                  keep            keep            keep            keep            keep
gpl.py                            keep            keep            keep            license         keep
dual_license.py                   keep            keep            keep            keep            keep
unknown_license.py                keep            keep            keep            unknown_license keep
"""  # noqa: E501


def outcome(record, policy):
    result = filters.apply(record, policy)
    if isinstance(result, Dropped):
        return result.reason
    text, _ = pii.redact(result.text, policy.pii)
    return "keep" if text == record.text else "redacted"


def expected_outcomes():
    """Returns the rows of the table: a file, and its outcomes by policy."""
    header, *rows = [line.split() for line in OUTCOMES.strip().splitlines()]
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_the_table_has_every_file_and_policy():
    table = expected_outcomes()
    assert set(table) == set(planted_files.planted_files())
    assert len(table) >= 60
    assert {"none", *table["clean.py"]} == set(POLICIES)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_outcomes(policy):
    files = planted_files.planted_files()
    table = expected_outcomes()
    expected = {name: row[policy] for name, row in table.items()}
    assert {name: outcome(files[name], POLICIES[policy]) for name in table} == expected


def test_other_outcomes_have_another_version():
    """A folder keeps the parts of its version: with other rules it would mix two corpora.

    Where only a planted file is new, give the version its new fingerprint. Otherwise raise
    VERSION, so that corpora that were prepared before are prepared again.
    """
    outcomes = []
    for name, policy in POLICIES.items():
        for record in planted_files.planted_files().values():
            result = filters.apply(record, policy)
            redacts = isinstance(result, Record) and policy.pii
            outcomes.append((name, result, pii.redact(result.text, policy.pii) if redacts else ""))
    for _, text in planted_secrets.planted_secrets():
        outcomes.append(pii.redact(text, POLICIES["starcoder"].pii))
    assert (VERSION, fingerprint(outcomes)) == (1, "be219c4f118cec29")


def test_the_policy_none_drops_empty_files_only():
    for name, record in planted_files.planted_files().items():
        expected = "keep" if record.text.strip() else "empty"
        assert outcome(record, POLICIES["none"]) == expected, name
    assert POLICIES["none"] == Policy()


@pytest.mark.parametrize("name", POLICIES)
def test_policies_survive_json(name):
    policy = POLICIES[name]
    check_all(policy)
    assert from_dict(Policy, json.loads(json.dumps(dataclasses.asdict(policy)))) == policy


def test_every_step_is_off_by_default():
    policy = Policy()
    assert not policy.near_duplicates.enabled
    rules = policy.decontamination
    assert not (rules.substring or rules.similarity or rules.ngrams or rules.tokens)
    assert not policy.exact_duplicates and not policy.pii


def test_published_figures():
    assert len(CODEGEEX_LANGUAGES) == 24  # the tags of the repository; the paper counts 23
    codex, starcoder = POLICIES["codex"], POLICIES["starcoder"]
    assert (codex.max_line, codex.max_mean_line, codex.max_bytes) == (1000, 100, 999_999)
    near = starcoder.near_duplicates
    assert (near.permutations, near.ngram, near.threshold) == (256, 5, 0.7)
    assert (near.bands, near.rows, near.verify_jaccard) == (25, 10, False)
    assert starcoder.extensions[".json"].min_alphabetic == 0.5
    assert starcoder.extensions[".fsh"].max_line == 500
    assert starcoder.decontamination.substring and starcoder.exact_duplicates


def near(**fields):
    return Policy(near_duplicates=NearDuplicates(**fields))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Policy(min_letters=1.5), "min_letters is 1.5: it must be at most 1"),
        (lambda: Policy(max_line=-1), "max_line is -1: it must be at least 0"),
        (lambda: Policy(pii=("phone",)), "pii is 'phone'"),
        (lambda: Policy(min_bytes=9, max_bytes=8), "min_bytes is 9: it must be at most max_bytes"),
        (lambda: Policy(min_comments=0.9, max_comments=0.8), "min_comments is 0.9"),
        (lambda: Policy(extensions={"html": ExtensionRules()}), "extensions has the key 'html'"),
        (lambda: Policy(extensions={".C": ExtensionRules()}), "in lower case"),
        (lambda: Policy(min_fertility={"Python": -1}), "min_fertility"),
        (lambda: near(bands=0), "bands is 0: set both bands and rows"),
        (lambda: near(permutations=128), "the signature has 128 permutations"),
        (lambda: near(unit="bytes"), "unit"),
        (lambda: near(threshold=0), "threshold is 0: it must be above 0"),
        (lambda: from_dict(Policy, {"max_lines": 3}), "Policy has no field max_lines"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(FieldError) as raised:
        build()
    assert message in str(raised.value)
