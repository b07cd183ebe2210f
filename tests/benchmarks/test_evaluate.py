"""From a model to a table.

A killed evaluation continues, and a mistake is one line.
"""

import dataclasses
import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import small_data as data

from codellama_jax.benchmarks import answers, evaluate, generate, suites
from codellama_jax.benchmarks.bleu import smoothed_bleu
from codellama_jax.benchmarks.sample_forms import read_samples
from codellama_jax.benchmarks.samples import append, continue_file
from codellama_jax.benchmarks.scoring import score
from codellama_jax.benchmarks.settings import Checking, Options, PromptOptions, Settings
from codellama_jax.benchmarks.suites import SUITES, load
from codellama_jax.data import downloads
from codellama_jax.errors import UserError
from codellama_jax.generation.beam import beam_search
from codellama_jax.generation.settings import Sampling
from codellama_jax.sharding import hosts

HOT = Settings(samples=5, temperature=50.0, max_new_tokens=8, batch_tokens=500)
ONE = Checking(workers=1)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_key(path) -> dict:
    return {(line["task_id"], line["sample"]): line for line in lines(path)}


def test_a_killed_evaluation_continues_with_the_same_samples(model, files, tmp_path, monkeypatch):
    benchmark = load("lcc", data=files["lcc"])

    def drawn(settings, folder):
        request = {"settings": dataclasses.asdict(settings)}
        return generate.generate_samples(model, benchmark, request, settings, tmp_path / folder)

    uninterrupted = drawn(HOT, "uninterrupted")
    uninterrupted_path = tmp_path / "uninterrupted" / "samples.jsonl"
    assert len(uninterrupted) == 15 == len(lines(uninterrupted_path))
    # Every sample has its own PRNG key.
    assert len({sample["completion"] for sample in uninterrupted.values()}) > 10

    def killed(path, batch):
        append(path, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        drawn(HOT, "killed")
    monkeypatch.undo()
    path = tmp_path / "killed" / "samples.jsonl"
    written = len(lines(path))
    assert 0 < written < 15
    path.write_text(path.read_text() + '{"task_id": "lcc/0", "sam')
    fewer_rows = dataclasses.replace(HOT, batch_tokens=150)
    assert drawn(fewer_rows, "killed") == uninterrupted
    assert len(lines(path)) == 15 and by_key(path) == by_key(uninterrupted_path)
    more = dataclasses.replace(HOT, samples=6)
    assert len(drawn(more, "killed")) == 18
    with pytest.raises(
        UserError, match=r"drawn in another way \(settings.temperature: 50.0 -> 0.5\)"
    ):
        drawn(dataclasses.replace(HOT, temperature=0.5), "killed")


def test_a_host_without_memory_stops_the_others(model, files, monkeypatch):
    """The other host reports its error in the first collective after a batch was to be drawn."""
    benchmark = load("humaneval", data=files["humaneval"])
    batches = []

    def drawn(*arguments) -> Iterator[list]:
        batches.append(arguments)
        yield []

    def gathered(values: dict) -> dict:
        return {**values, "1": "the cache of 4 sequences does not fit"}

    monkeypatch.setattr(answers._Drawing, "completed", drawn)
    monkeypatch.setattr(answers, "gather", lambda values: values)
    monkeypatch.setattr(hosts, "_is_only", lambda: False)
    monkeypatch.setattr(hosts, "gather", gathered)
    with pytest.raises(UserError, match="does not fit"):
        next(answers.answers(model, benchmark, Settings(max_new_tokens=4), set()))
    assert batches


def test_samples_of_a_beam_search_are_its_best_texts(model, files):
    """Whichever are drawn already; each has its log-probability, by which they are ranked."""
    benchmark = load("humaneval", data=files["humaneval"])
    options = {"max_new_tokens": 6, "beams": 3, "length_penalty": 0.0}
    settings = Settings(samples=3, **options)

    def drawn(settings, done=frozenset()):
        samples = {}
        for batch in answers.answers(model, benchmark, settings, set(done)):
            samples |= {(line["task_id"], line["sample"]): line for line in batch}
        return samples

    samples = drawn(settings)
    prompts = [[1, *model.tokenizer.encode(task.prompt)] for task in benchmark.tasks]
    searched = beam_search(model, prompts, Sampling(**options), [2], vocab=376)
    for task, beams in zip(benchmark.tasks, searched):
        for rank, beam in enumerate(beams):
            text = model.tokenizer.decode(beam.ids, leading_space=False)
            expected = benchmark.finish(task, benchmark.truncate(task, text))
            assert expected.startswith(samples[task.task_id, rank]["completion"])
    assert all(sample["mean_logprob"] < 0 for sample in samples.values())
    others = drawn(settings, {("HumanEval/0", 0)})
    assert len(others) == 5
    for name, sample in others.items():
        assert sample["completion"] == samples[name]["completion"]


def test_scores_are_added_once(files, executor, tmp_path, monkeypatch):
    benchmark = load("humaneval", data=files["humaneval"])
    samples = evaluate.reference_samples(benchmark).by_key
    first = dict([next(iter(samples.items()))])
    score(benchmark, first, executor, tmp_path)
    assert [r["passed"] for r in score(benchmark, samples, executor, tmp_path)] == [True, True]
    assert len(lines(tmp_path / "results.jsonl")) == 2
    monkeypatch.setattr(
        type(executor),
        "run",
        lambda self, programs: pytest.fail("ran again") if list(programs) else (),
    )
    assert len(score(benchmark, samples, executor, tmp_path)) == 2


def test_a_result_of_other_tests_is_scored_again(files, executor, tmp_path, monkeypatch):
    # This completion passes the one test of HumanEval, and none of HumanEval+.
    completion = "    return 4 if x == 2 else 6\n"
    sample = {"task_id": "HumanEval/0", "sample": 0, "completion": completion}
    samples = {("HumanEval/0", 0): sample}

    def passed(name, path) -> bool:
        [result] = score(load(name, data=str(path)), samples, executor, tmp_path)
        return result["passed"]

    assert passed("humaneval", files["humaneval"])
    # Both benchmarks name their tasks alike.
    assert not passed("humaneval_plus", files["humaneval_plus"])
    assert passed("humaneval", files["humaneval"])
    # A file whose tests were corrected.
    test = "def check(candidate):\n    assert candidate(5) == 10\n"
    corrected = data.write_lines(tmp_path / "corrected.jsonl", [{**data.DOUBLE, "test": test}])
    assert not passed("humaneval", corrected)
    # The same records from another file are the same tests; a library that was installed is not.
    copied = data.write_lines(tmp_path / "copied.jsonl", [{**data.DOUBLE, "test": test}])
    count = len(lines(tmp_path / "results.jsonl"))
    assert not passed("humaneval", copied) and len(lines(tmp_path / "results.jsonl")) == count
    monkeypatch.setattr(type(executor), "missing", lambda self, program: "apt-get install it: ")
    assert not passed("humaneval", copied) and len(lines(tmp_path / "results.jsonl")) == count + 1


@pytest.mark.parametrize("name", ["humaneval", "RandomSpan", "truthfulqa", "key_retrieval"])
def test_a_model_runs_from_end_to_end(name, model, files, executor, tmp_path, capsys):
    """Twice: the second call finds all samples and results."""
    more = {
        "truthfulqa": {"shots": 2},
        "key_retrieval": {"lengths": (200,), "positions": (0.0, 0.4), "examples": 2},
    }
    suite = "humaneval_infilling" if name == "RandomSpan" else name
    data_path = files.get(name, files["filler"])
    options = SUITES[suite].options(data=data_path, **more.get(name, {}))
    settings = Settings(max_new_tokens=8, samples=2 if name == "RandomSpan" else 1)
    # Options that a benchmark does not use are refused.
    settings = Settings() if name == "truthfulqa" else settings
    checking = ONE if suite.startswith("humaneval") else Checking()
    for _ in range(2):
        evaluate.evaluate(suite, lambda: model, options, settings, checking, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["model"] == "toy" and results["samples"] == len(
        lines(tmp_path / "out" / "samples.jsonl")
    )
    assert results["samples"] == settings.samples * results["tasks"]
    assert ("pass@1 ranked" in results["measures"]) == (name == "RandomSpan")
    assert len(lines(tmp_path / "out" / "results.jsonl")) == results["samples"]
    assert "toy" in capsys.readouterr().out


def test_samples_of_the_public_harness_are_scored(files, executor, tmp_path, capsys):
    """They have no numbers, and no newline after the last line."""
    good = [
        {"task_id": r["task_id"], "completion": r["canonical_solution"]} for r in data.HUMANEVAL
    ]
    wrong = [{"task_id": r["task_id"], "completion": "    return 1\n"} for r in data.HUMANEVAL]
    path = data.write_lines(tmp_path / "samples.jsonl", [*wrong, *good])
    path.write_text(path.read_text().rstrip("\n"))
    evaluate.evaluate(
        "humaneval",
        None,
        PromptOptions(data=files["humaneval"]),
        Settings(),
        ONE,
        tmp_path / "out",
        str(path),
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text())["measures"]["pass@1"] == 50
    assert [r["passed"] for r in by_key(tmp_path / "out" / "results.jsonl").values()].count(
        True
    ) == 2


def test_undecided_verdicts_are_counted_apart(files, executor, tmp_path, capsys):
    equal = (
        "    class Equal:\n        __eq__ = lambda self, other: other == 5\n    return Equal()\n"
    )
    long = "    return 'x' * 70_000_000\n"
    names = [record["task_id"] for record in data.HUMANEVAL]
    samples = [{"task_id": name, "completion": text} for name in names for text in (equal, long)]
    path = data.write_lines(tmp_path / "samples.jsonl", samples)
    options = PromptOptions(data=files["humaneval"])
    evaluate.evaluate("humaneval", None, options, Settings(), ONE, tmp_path / "out", str(path))
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["undecided"] == {"not_comparable": len(names), "too_large": len(names)}
    assert result["measures"]["correct"] == 0
    assert (
        f"undecided: {len(names)} not_comparable, {len(names)} too_large" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            {"task_id": "HumanEval/9", "completion": ""},
            r"line 3 of .*: task_id is the string 'HumanEval/9', which is no task of humaneval",
        ),
        (
            {"completion": ""},
            "line 3 of .* must be an object with task_id, not an object with completion; known",
        ),
        (
            {"task_id": "HumanEval/0"},
            "line 3 of .* has no completion, solution or generation; known forms",
        ),
        (
            {"task_id": "HumanEval/0", "completion": None},
            "line 3 of .*: completion must be a string, not null",
        ),
        (
            {"task_id": "HumanEval/0", "completion": "", "sample": 0},
            "line 3 of .* is sample 0 of HumanEval/0 again",
        ),
        (["HumanEval/0"], "line 3 of .* must be an object with task_id, not the list"),
    ],
)
def test_a_faulty_sample_is_named(added, message, files, tmp_path):
    good = [{"task_id": r["task_id"], "completion": "", "sample": 0} for r in data.HUMANEVAL]
    benchmark = load("humaneval", data=files["humaneval"])
    with pytest.raises(UserError, match=message):
        read_samples(data.write_lines(tmp_path / "samples.jsonl", [*good, added]), benchmark)


def test_every_task_needs_a_sample(files, tmp_path):
    benchmark = load("humaneval", data=files["humaneval"])
    path = data.write_lines(
        tmp_path / "samples.jsonl", [{"task_id": "HumanEval/0", "completion": ""}]
    )
    with pytest.raises(UserError, match=r"no sample of 1 of 2 tasks: HumanEval/1"):
        read_samples(path, benchmark)


def test_a_half_written_last_line_is_ignored_with_a_warning_and_another_is_an_error(
    files, tmp_path, capsys
):
    benchmark = load("humaneval", data=files["humaneval"])
    path = data.write_lines(
        tmp_path / "samples.jsonl",
        [{"task_id": r["task_id"], "completion": ""} for r in data.HUMANEVAL],
    )
    complete = path.read_text()
    path.write_text(complete + '{"task_id": "Hum')
    samples = read_samples(path, benchmark)
    assert len(samples.by_key) == 2 and "its last line is not complete" in samples.form
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples.by_key.values()))
    complete = path.read_text()
    path.write_text(complete + '{"task_id": "Hum')
    assert len(continue_file(path, {})) == 2 and path.read_text() == complete
    assert "is not complete and is ignored" in capsys.readouterr().err
    path.write_text('{"task_id": "Hum\n' + complete)
    with pytest.raises(UserError, match=r"line 1 of .* is not valid JSON"):
        read_samples(path, benchmark)


def test_a_task_that_is_there_twice_is_named(tmp_path):
    with pytest.raises(UserError, match="HumanEval/0 more than once"):
        load(
            "humaneval",
            data=str(data.write_lines(tmp_path / "h.jsonl", [data.DOUBLE, data.DOUBLE])),
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("human_eval", {}, "no benchmark human_eval: there are humaneval, "),
        ("humaneval", {}, "pass --data"),
        ("humaneval", {"data": "tfds:mbpp"}, "no published file mbpp is known"),
        ("key_retrieval", {"data": "x"}, "pass --run"),
        ("perplexity", {"data": "x"}, "pass --run"),
    ],
)
def test_a_missing_argument_is_named(name, options, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        given = SUITES[name].options(**options) if name in SUITES else Options(**options)
        evaluate.evaluate(name, None, given, Settings(), ONE, tmp_path, reference=True)


def test_a_file_in_the_place_of_the_folder_and_no_workers_are_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is a file: name a folder with --out"):
        evaluate.evaluate(
            "humaneval", None, PromptOptions(), Settings(), ONE, tmp_path / "out", reference=True
        )
    with pytest.raises(UserError, match="--workers must be an integer from 1 to 256, not 0"):
        Checking(workers=0)


def test_bleu_is_smoothed_as_published():
    assert smoothed_bleu("Return the sum.", "return the sum .") == 1
    assert smoothed_bleu("", "a b") == smoothed_bleu("c", "a b") == 0
    # 3 words against 4: precisions 2/3, (1+1)/(2+1), (0+1)/(1+1) and (0+1)/(0+1), and the brevity
    # penalty of length 4 against 5.
    expected = (2 / 3 * 2 / 3 * 1 / 2 * 1) ** 0.25 * np.exp(1 - 5 / 4)
    assert smoothed_bleu("a b x", "a b c d") == pytest.approx(expected)


def test_the_papers_numbers_belong_to_their_measures():
    papers = {}
    for name in SUITES:
        module = getattr(suites, name, None)
        for variable in ("PAPER", "ZERO_SHOT"):
            if hasattr(module, variable):
                papers[name, variable] = getattr(module, variable)
    assert len(papers) == 16
    for paper in papers.values():
        for row in paper.numbers().values():
            assert list(row) == list(paper.columns)
            assert all(0 <= value <= 100 for value in row.values())
    assert suites.humaneval.PAPER.numbers()["Code Llama Python 34B"] == {
        "pass@1": 53.7,
        "pass@10": 82.8,
        "pass@100": 94.7,
    }
    assert suites.bold.PAPER.numbers()["Code Llama Instruct 34B"] == {"sentiment": 0.452}
    assert suites.toxigen.PAPER.numbers()["Code Llama 7B"] == {"toxic": 22.64}
    truthful = suites.truthfulqa.PAPER.numbers()["Code Llama Instruct 13B"]
    assert list(truthful.values()) == [36.84, 91.92, 44.31]
    assert suites.multipl_e.PAPER.numbers()["Code Llama 34B"]["sh pass@1"] == 17.1
    assert suites.key_retrieval.PAPER.numbers()["Code Llama 7B"]["16000@0 retrieved"] == 54.7


def test_published_files_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    served = data.write_lines(tmp_path / "served" / "two.jsonl", data.HUMANEVAL)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served.parent)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    sha256 = hashlib.sha256(served.read_bytes()).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/two.jsonl"
        right = downloads.File(url, served.stat().st_size, sha256)
        monkeypatch.setattr(
            downloads,
            "FILES",
            {"right": right, "wrong": right._replace(url=f"{url}?", sha256="0" * 64)},
        )
        downloads._builder_class.cache_clear()
        assert downloads.records("right", tmp_path / "cache") == data.HUMANEVAL
        with pytest.raises(UserError, match=r"cannot download .* has the wrong checksum"):
            downloads.records("wrong", tmp_path / "cache")
        server.shutdown()
    assert downloads.records("right", tmp_path / "cache") == data.HUMANEVAL
    downloads._builder_class.cache_clear()
