"""Only a result on all of the published tasks is compared with the papers' numbers."""

import gzip
import json
from pathlib import Path

import pytest
from paths import DATA

from codellama_jax.benchmarks import comparable, summary
from codellama_jax.benchmarks.suites import SUITES, humaneval

needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the published files")
PUBLISHED = [
    ("humaneval", "humaneval/HumanEval.jsonl.gz"),
    ("humaneval_infilling", "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz"),
    ("humaneval_x", "humaneval_x/humaneval_go.jsonl.gz"),
    ("mbpp", "mbpp/mbpp.jsonl"),
    ("multipl_e", "multipl_e"),
]


def why_not(name: str, partial: bool = False, **options) -> str:
    suite = SUITES[name]
    given = suite.options(**options)
    return comparable.why_not(name, suite, suite.load(given, None), given, partial)


def test_a_users_own_tasks_are_not_compared(files):
    reason = why_not("humaneval", data=files["humaneval"])
    assert "humaneval.jsonl are not those that the papers' numbers are for" in reason
    reason = why_not("lcc", data=files["lcc"])
    assert reason == "no checksum of the published data of lcc is known"
    result = {"benchmark": "humaneval", "tasks": 3, "samples": 3, "measures": {"pass@1": 50.0}}
    assert summary.show(result, "mine").row_count == 1
    assert summary.show(result, "mine", humaneval.PAPER).row_count == 12


@needs_data
@pytest.mark.parametrize(("suite", "file"), PUBLISHED)
def test_published_data_is_compared(suite, file):
    assert why_not(suite, data=str(DATA / file)) == ""
    partial = why_not(suite, partial=True, data=str(DATA / file))
    assert partial == "only some of the tasks have samples"


@needs_data
def test_all_published_problems_of_gsm8k_are_compared(tmp_path):
    """The published folder has train.jsonl, which the data of these tests lack."""
    problems = DATA / "gsm8k" / "test.jsonl"
    (tmp_path / "test.jsonl").symlink_to(problems)
    assert "solved examples" in why_not("gsm8k", data=str(tmp_path / "test.jsonl"))
    (tmp_path / "train.jsonl").symlink_to(problems)
    assert why_not("gsm8k", data=str(tmp_path / "test.jsonl")) == ""


@needs_data
def test_the_layout_of_a_published_file_does_not_matter_and_its_records_do(tmp_path):
    path = DATA / "humaneval" / "HumanEval.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(records[::-1], indent=2))
    assert why_not("humaneval", data=str(path)) == ""
    records[0]["test"] += "\n"
    path.write_text(json.dumps(records))
    assert why_not("humaneval", data=str(path))
    mbpp = str(DATA / "mbpp" / "mbpp.jsonl")
    assert "test split" in why_not("mbpp", data=mbpp, all_tasks=True)


def test_a_test_split_without_the_problems_that_became_examples(files, tmp_path):
    problems = Path(files["gsm8k/test"]).read_text()
    (tmp_path / "test.jsonl").write_text(problems)
    reason = why_not("gsm8k", data=str(tmp_path / "test.jsonl"), shots=1)
    assert "its first problems are the solved examples" in reason
    (tmp_path / "train.jsonl").write_text(problems)
    reason = why_not("gsm8k", data=str(tmp_path / "test.jsonl"), shots=1)
    assert "--shots 1 solved examples, and the papers' numbers are for 8" in reason


def test_other_numbers_of_solved_examples_are_not_compared(files):
    for name, shots, published in (("mbpp", 1, "3 or 0"), ("apps", 1, "2 or 0")):
        reason = why_not(name, data=files[name], shots=shots)
        assert f"--shots 1 solved examples, and the papers' numbers are for {published}" in reason
        for own in (-1, 0):
            assert "--shots" not in why_not(name, data=files[name], shots=own)
    reason = why_not("truthfulqa", data=files["truthfulqa"], classifier="cat", shots=0)
    assert "--shots 0 solved examples, and the papers' numbers are for 6" in reason
    reason = why_not("truthfulqa", data=files["truthfulqa"], classifier="cat")
    assert "holds 8 tasks" in reason


def test_a_measure_without_papers_numbers(files):
    assert "no paper's number" in why_not("truthfulqa", data=files["truthfulqa"])
    perplexity = SUITES["perplexity"]
    reason = comparable.why_not("perplexity", perplexity, None, perplexity.options(), False)
    assert "no paper's number" in reason
