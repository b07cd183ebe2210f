"""GSM8K (Cobbe et al. 2021; Code Llama, table 12): sums in words, 8-shot with reasoning in text, or as programs (PAL, Gao et al. 2022)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from codellama_jax.errors import UserError
from codellama_jax.evaluation.benchmarks.benchmark import Benchmark, Check, Record, Sample, Task, passed, read_records, until
from codellama_jax.evaluation.execute import Program, Verdict
from codellama_jax.evaluation.settings import Options

SHOTS = 8
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
PRECISION = 1e-3
TIMEOUT = 3.0


def load(options: Options, tokenizer: object = None) -> Benchmark:
    """Examples come from train.jsonl beside the file; without one the file's first problems are the examples, and are not asked."""
    shots = options.shots if options.shots >= 0 else SHOTS
    examples, asked = _train(Path(options.data).expanduser(), shots), _problems(options.data)
    if len(examples) < shots:
        examples, asked = asked[:shots], asked[shots:]
    prompt = "".join(f"Question: {r['question']}\nAnswer: {_without_notes(r['answer'])}\n\n" for r in examples)
    ending = lambda record: f"Question: {record['question']}\nAnswer:"
    tasks = [_task(r, prompt + ending(r), f" {_without_notes(r['answer'])}\n\n") for r in asked]
    return Benchmark("gsm8k", tasks, cut=until(("\nQuestion:",)), judge=_judge)


def load_programs(options: Options, tokenizer: object = None) -> Benchmark:
    """Examples come from pal*.json beside the file, `questions` and `solutions` in two lists."""
    shots = options.shots if options.shots >= 0 else SHOTS
    place = Path(options.data).expanduser()
    found = sorted((place if place.is_dir() else place.parent).glob("pal*.json"))
    if not found:
        raise UserError(f"gsm8k_programs takes its examples from a pal*.json beside {options.data or '--data'}: put one there")
    record = read_records(found[0], ("questions", "solutions"))[0]
    pairs = list(zip(record["questions"], record["solutions"]))[:shots]
    prompt = "".join(f"{_program_of(question)}{solution}\n\n\n\n\n\n" for question, solution in pairs)
    tasks = [_task(r, prompt + _program_of(r["question"]).rstrip()) for r in _problems(options.data)]
    return Benchmark("gsm8k_programs", tasks, cut=until(("\n\n\n\n",)), finish=lambda task, text: text.lstrip("\n"), checks=_checks)


def _train(place: Path, shots: int) -> list[Record]:
    train = (place if place.is_dir() else place.parent) / "train.jsonl"
    return read_records(train, ("question", "answer"))[:shots] if train.exists() else []


def _problems(data: str) -> list[Record]:
    place = Path(data).expanduser()
    records = read_records(place / "test.jsonl" if data and place.is_dir() else data, ("question", "answer"))
    return [{**record, "number": number} for number, record in enumerate(records)]


def _task(record: Record, prompt: str, reference: str | None = None) -> Task:
    answer = last_number(record["answer"])
    if answer is None:
        raise UserError(f"problem {record['number']} has no number for an answer: {record['answer'][-60:]!r}")
    return Task(str(record["number"]), prompt, reference=reference, record={"answer": answer})


def _without_notes(answer: str) -> str:
    """Leaves out the calculator's notes <<...>>."""
    return re.sub(r"<<[^>]*>>", "", answer)


def _program_of(question: str) -> str:
    return f"Q: {question}\n\n# solution in Python:\n\n\n"


def last_number(text: str) -> float | None:
    """Returns the number after `####` or "the answer is", else the last one."""
    marked = re.split(r"####|[Tt]he answer is", text)
    found = NUMBER.findall(marked[-1])
    if not found:
        return None
    return float((found[0] if len(marked) > 1 else found[-1]).replace(",", ""))


def _judge(task: Task, sample: Sample) -> dict[str, float]:
    written = last_number(sample["completion"])
    return {"solved": float(written is not None and abs(written - task.record["answer"]) < PRECISION)}


def _checks(task: Task, completion: str) -> list[Check]:
    def accepts(verdict: Verdict) -> bool:
        with contextlib.suppress(ValueError):
            return passed(verdict) and abs(float(verdict.stdout) - task.record["answer"]) < PRECISION
        return False

    return [Check(Program(task.task_id, "python", f"{completion}\nprint(solution())\n", TIMEOUT, rule="output"), accepts)]
