"""Only a result on the published tasks, all of them, stands beside the papers' numbers."""

import gzip
import json

import pytest
from paths import DATA

from codellama_jax.benchmarks import comparable, paper, summary
from codellama_jax.benchmarks.settings import Options

needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the published files")
PUBLISHED = [
    ("humaneval", "humaneval/HumanEval.jsonl.gz"),
    ("humaneval_infilling", "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz"),
    ("humaneval_x", "humaneval_x/humaneval_go.jsonl.gz"),
    ("gsm8k", "gsm8k/test.jsonl"),
    ("mbpp", "mbpp/mbpp.jsonl"),
    ("multipl_e", "multipl_e"),
]


def test_a_users_own_tasks_are_not_compared(files):
    reason = comparable.why_not("humaneval", "humaneval", Options(data=files["humaneval"]), False)
    assert "humaneval.jsonl are not those of the published file" in reason
    reason = comparable.why_not("lcc", "lcc", Options(data=files["lcc"]), False)
    assert reason == "no checksum of the published data of lcc is known"
    result = {"benchmark": "humaneval", "tasks": 3, "samples": 3, "measures": {"pass@1": 50.0}}
    assert summary.show(result, "mine", with_paper=False).row_count == 1
    assert summary.show(result, "mine").row_count == 1 + len(paper.numbers("humaneval"))


@needs_data
@pytest.mark.parametrize(("suite", "file"), PUBLISHED)
def test_published_data_is_compared(suite, file):
    options = Options(data=str(DATA / file))
    assert comparable.why_not(suite, suite, options, partial=False) == ""
    partial = comparable.why_not(suite, suite, options, partial=True)
    assert partial == "only some of the tasks have samples"


@needs_data
def test_the_layout_of_a_published_file_does_not_matter_and_its_records_do(tmp_path):
    path = DATA / "humaneval" / "HumanEval.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    own = tmp_path / "own.json"
    options = Options(data=str(own))
    own.write_text(json.dumps(records[::-1], indent=2))
    assert comparable.why_not("humaneval", "humaneval", options, partial=False) == ""
    records[0]["test"] += "\n"
    own.write_text(json.dumps(records))
    assert comparable.why_not("humaneval", "humaneval", options, partial=False)
    mbpp = Options(data=str(DATA / "mbpp" / "mbpp.jsonl"), all_tasks=True)
    assert "test split" in comparable.why_not("mbpp", "mbpp", mbpp, partial=False)


def test_a_measure_without_papers_numbers():
    options = Options(data="x")
    assert "no paper's number" in comparable.why_not("truthfulqa", "truthfulqa", options, False)
