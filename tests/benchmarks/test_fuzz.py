"""Random faults in data, samples and results: each file is read, or refused in one line.

`python tests/benchmarks/test_fuzz.py 10000 SEED FOLDER` tries more of them.
"""

import gzip
import json
import random
import sys
from pathlib import Path

import small_data as data
from suite_records import MORE, SUITES, load_all, use

from codellama_jax.benchmarks.sample_forms import read_samples
from codellama_jax.benchmarks.samples import continue_file
from codellama_jax.benchmarks.scoring import FIELDS
from codellama_jax.errors import UserError

VALUES = [None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400]
VALUES += ["", "x", "\ud800", "\0", "\ufeff", "a" * 5000, "HumanEval/0", "11", 11]
ANSWERS = ["completion", "solution", "generation", "log_likelihoods"]
OWN = {"task_id": "HumanEval/0", "sample": 0, "passed": True, "result": "passed", "completion": ""}


class Fuzzer:
    """Makes inputs from a seed and gives them to the readers."""

    def __init__(self, seed: int, folder: Path):
        self.random, self.path = random.Random(seed), folder / "fuzz.jsonl"
        self.benchmarks = []
        for suite in ("humaneval", "mbpp", "truthfulqa", "humaneval_infilling"):
            data.write_lines(self.path, [SUITES[suite]])
            self.benchmarks.append(load_all(suite, str(self.path)))

    def value(self, depth: int = 0):
        """Returns a JSON value."""
        kind = self.random.random()
        if depth > 3 or kind < 0.6:
            return self.random.choice(VALUES)
        items = [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        names = self.random.sample(["task_id", "sample", "a", *ANSWERS], len(items))
        return items if kind < 0.8 else dict(zip(names, items))

    def damaged(self, content: bytes) -> bytes:
        """Returns the content of a file with a fault, or as it was."""
        place = self.random.randrange(len(content) + 1)
        packed = bytearray(gzip.compress(content))
        packed[self.random.randrange(len(packed))] ^= 1 << self.random.randrange(8)
        return self.random.choice(
            [
                content,
                content[:place],
                content[:place] + self.random.randbytes(3) + content[place:],
                gzip.compress(content)[: self.random.randrange(10, 200)],
                bytes(packed),
                content.decode(errors="replace").encode("utf-16"),
                b"\xef\xbb\xbf" + content,
                b"[" * self.random.choice([1, 900, 100_000]) + content,
            ]
        )

    def changed(self, record: dict, names: list[str]) -> dict:
        """Returns a record with other values in up to two of the named fields."""
        chosen = self.random.sample(names, self.random.randrange(3))
        return {**record, **{name: self.value() for name in chosen}}

    def write(self, records: list) -> None:
        """Writes records as JSON lines or an array, then damages the file."""
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        if self.random.random() < 0.2:
            text = json.dumps(records)
        self.path.write_bytes(self.damaged(text.encode()))

    def data_file(self) -> None:
        """Reads a benchmark's record and makes its programs."""
        suite = self.random.choice(list(SUITES))
        record = self.random.choice([SUITES[suite], MORE.get(suite, SUITES[suite])])
        self.write([self.changed(record, list(record))])
        use(suite, self.path)

    def samples_file(self) -> None:
        """Reads samples of a random benchmark."""
        lines = []
        for _ in range(self.random.randrange(4)):
            task_id = self.random.choice(["HumanEval/0", 11, "Mbpp/11", "0"])
            sample = {"task_id": task_id, self.random.choice(ANSWERS): "x"}
            sample = self.changed(sample, [*sample, "sample", "mean_logprob"])
            lines.append(sample if self.random.random() < 0.8 else self.value())
        self.write(lines)
        read_samples(self.path, self.random.choice(self.benchmarks), self.random.random() < 0.5)

    def own_file(self) -> None:
        """Reads a results.jsonl."""
        count = self.random.randrange(4)
        self.write([self.random.choice([OWN, self.value()]) for _ in range(count)])
        continue_file(self.path, FIELDS)

    def run(self, count: int) -> dict[str, int]:
        """Tries inputs. Raises any exception other than a UserError of one line."""
        outcomes = {"read": 0, "refused": 0}
        for number in range(count):
            reader = (self.data_file, self.samples_file, self.own_file)[number % 3]
            try:
                reader()
                outcomes["read"] += 1
            except UserError as error:
                outcomes["refused"] += 1
                assert "\n" not in str(error) and len(str(error)) < 1500
        return outcomes


def test_every_input_is_read_or_refused_in_one_line(tmp_path):
    outcomes = Fuzzer(0, tmp_path).run(600)
    assert min(outcomes.values()) > 30, outcomes


if __name__ == "__main__":
    print(Fuzzer(int(sys.argv[2]), Path(sys.argv[3])).run(int(sys.argv[1])))
