"""A model that knows the answers gets the full score.

This covers prompts, tokens, stop strings, post-processing and checks.
"""

import dataclasses
import functools
import json
import time

import pytest
from paths import DATA

from codellama_jax.benchmarks import answers
from codellama_jax.benchmarks.benchmark import Benchmark
from codellama_jax.benchmarks.evaluate import reference_samples
from codellama_jax.benchmarks.scoring import score
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.benchmarks.suites.apps import same_output
from codellama_jax.benchmarks.suites.gsm8k import last_number
from codellama_jax.benchmarks.summary import summarise
from codellama_jax.data.infilling import prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation import text
from codellama_jax.generation.requests import Request, Running
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sandbox import languages
from codellama_jax.tokenizers import files

# Text that a model may write after its answer.
NEXT = "\ndef other():\n    return 1\n"
BRACE = "\n\nint other() {\n    return 1;\n}\n"


def knows(model: TrainedModel, benchmark: Benchmark, babble: str, spm: bool, monkeypatch) -> None:
    """Replaces sampling: the model writes the canonical solutions, each followed by `babble`."""
    tokenizer = model.tokenizer
    known = {}
    for task in benchmark.tasks:
        ids = [tokenizer.bos_id, *tokenizer.encode(task.prompt)]
        if benchmark.infilling:
            ids = prompt_ids(tokenizer, task.prompt, task.suffix, spm)
        known[tuple(ids)] = task.reference
    end = tokenizer.eot_id if benchmark.infilling else tokenizer.eos_id

    def generate_each(model, prompts, sampling, stop_ids, *, stop, **options):
        for index, prompt in enumerate(prompts):
            ids = tokenizer.encode(known[tuple(prompt)] + babble, leading_space=False)
            request = Request(prompt, sampling, stop_ids, functools.partial(stop, index))
            sequence = Running(index, request)
            new, drawn = [], [*ids, end]
            while not sequence.is_finished:
                new += sequence.take(drawn[:16])
                # As in a batch, ids without a meaning follow the end.
                drawn = [*drawn[16:], *[0] * 16]
            yield index, new

    monkeypatch.setattr(text, "generate_each", generate_each)
    # The memory that a cache takes does not matter where nothing is decoded.
    monkeypatch.setattr(answers, "fitting_slots", lambda model, slots, tokens: slots)


def needs(benchmark: Benchmark) -> None:
    """Skips the test if the machine lacks the toolchain."""
    for check in benchmark.checks(benchmark.tasks[0], "") if benchmark.checks else ():
        try:
            languages.require(check.program.language)
        except UserError as error:
            pytest.skip(str(error))


def results_of(model, benchmark, executor, out, babble="", spm=False, monkeypatch=None) -> dict:
    needs(benchmark)
    knows(model, benchmark, babble, spm, monkeypatch)
    samples = {}
    for batch in answers.answers(model, benchmark, Settings(spm=spm), set()):
        samples |= {(sample["task_id"], sample["sample"]): sample for sample in batch}
    assert len(samples) == len(benchmark.tasks)
    return summarise(benchmark, score(benchmark, samples, executor, out))["measures"]


CASES = [
    ("humaneval", "humaneval", NEXT, {}),
    ("humaneval_plus", "humaneval_plus", "\n# more\n", {}),
    ("mbpp", "mbpp", "\n[DONE]\n\nYou are", {"all_tasks": True}),
    ("mbpp", "mbpp", "\n[/PYTHON] This code", {"shots": 0}),
    ("apps", "apps", "'''\n\nQ: ", {}),
    ("apps", "apps", "'''\n", {"shots": 0}),
    ("humaneval_x", "x_python", NEXT, {}),
    ("humaneval_x", "x_js", BRACE, {}),
    ("humaneval_x", "x_java", BRACE, {}),
    ("humaneval_x", "x_cpp", BRACE, {}),
    ("humaneval_x", "x_go", "\n\nfunc main() {\n}\n", {}),
    ("humaneval_x", "x_js", BRACE, {"source": "x_python"}),
    ("humaneval_infilling", "SingleLine", "        y = 0\n", {}),
    ("humaneval_infilling", "MultiLine", "", {}),
    ("humaneval_infilling", "RandomSpan", "", {}),
    ("single_line", "single_line", "\nmore", {}),
    ("docstring", "docstring", "More.\n", {}),
    ("gsm8k", "gsm8k/test", "\nQuestion: 1", {"shots": 1}),
    ("lcc", "lcc", "y = 0\n", {}),
]
HUNDRED = {"pass@1", "exact", "bleu", "solved", "retrieved"}


INFILLING = ("humaneval_infilling", "single_line", "docstring")


@pytest.mark.parametrize(
    ("name", "file", "babble", "options", "spm"),
    [(*case, False) for case in CASES] + [(*case, True) for case in CASES if case[0] in INFILLING],
)
def test_a_model_that_knows_the_answers_scores_all(
    name, file, babble, options, spm, model, files, executor, tmp_path, monkeypatch
):
    if "source" in options:
        options = {**options, "source": files[options["source"]]}
    benchmark = load(name, data=files[file], **options)
    measures = results_of(model, benchmark, executor, tmp_path, babble, spm, monkeypatch)
    reached = {name: value for name, value in measures.items() if name in HUNDRED}
    assert reached and set(reached.values()) == {100.0}


def test_multipl_e_knows_where_a_function_ends(model, files, executor, tmp_path, monkeypatch):
    benchmark = load("multipl_e", data=files["multipl_e"])
    tasks = [dataclasses.replace(task, reference="\n    return 2 * x;") for task in benchmark.tasks]
    measures = results_of(
        model,
        dataclasses.replace(benchmark, tasks=tasks),
        executor,
        tmp_path,
        "\n}\n" + BRACE,
        False,
        monkeypatch,
    )
    assert measures["pass@1"] == 100


def test_programs_that_reason_are_judged_by_their_output(
    model, files, executor, tmp_path, monkeypatch
):
    benchmark = load("gsm8k_programs", data=files["gsm8k/test"])
    assert (
        benchmark.tasks[0].prompt.startswith("Q: One and one?")
        and "return 1 + 1" in benchmark.tasks[0].prompt
    )
    program = "\n\n\ndef solution():\n\n    apples = 19\n    return apples + 2\n"
    tasks = [dataclasses.replace(task, reference=program) for task in benchmark.tasks]
    measures = results_of(
        model,
        dataclasses.replace(benchmark, tasks=tasks),
        executor,
        tmp_path,
        "\n\n\n\n\nQ: ",
        False,
        monkeypatch,
    )
    assert measures["correct"] == 1  # of 2, 21 and 2,000


def test_key_retrieval_is_judged(model, files, tmp_path, monkeypatch):
    benchmark = load(
        "key_retrieval",
        tokenizer=model.tokenizer,
        data=files["filler"],
        lengths=(200, 300),
        examples=2,
    )
    measures = results_of(model, benchmark, None, tmp_path, "assert", False, monkeypatch)
    assert measures["retrieved"] == 100


@pytest.mark.parametrize(
    ("name", "file", "options", "completion"),
    [
        ("humaneval", "humaneval", {}, "    return None\n"),
        ("humaneval_plus", "humaneval_plus", {}, "    return x + x + (x == 0.1)\n"),
        ("mbpp", "mbpp", {"all_tasks": True}, "\ndef add_1(x):\n    return 0"),
        ("apps", "apps", {}, "print(5)"),
        ("humaneval_x", "x_js", {}, "  return 0;\n}"),
        ("humaneval_x", "x_cpp", {}, "    return 0;\n}"),
        ("humaneval_infilling", "SingleLine", {}, "        pass\n"),
        ("multipl_e", "multipl_e", {}, "    return 0;"),
        ("single_line", "single_line", {}, "x"),
        ("gsm8k", "gsm8k/test", {"shots": 1}, " 7"),
        ("lcc", "lcc", {}, "x"),
    ],
)
def test_a_wrong_answer_is_wrong(name, file, options, completion, files, executor, tmp_path):
    benchmark = load(name, data=files[file], **options)
    needs(benchmark)
    samples = {
        (task.task_id, 0): {"task_id": task.task_id, "sample": 0, "completion": completion}
        for task in benchmark.tasks
    }
    measures = summarise(benchmark, score(benchmark, samples, executor, tmp_path))["measures"]
    assert {value for name, value in measures.items() if name in HUNDRED - {"bleu"}} == {0.0}


def test_a_dict_of_apps_has_integer_keys_again(executor, tmp_path):
    """JSON turns integer keys into texts; the published code turns those back."""
    folder = tmp_path / "test" / "0000"
    folder.mkdir(parents=True)
    (folder / "question.txt").write_text("Add the keys, or join those that are texts.")
    inputs, outputs = [[{"1": 5, "2": 6}], [{"a": 1, "2": 3}]], [3, "a2"]
    tests = {"fn_name": "joined", "inputs": inputs, "outputs": outputs}
    (folder / "input_output.json").write_text(json.dumps(tests))
    code = "def joined(d):\n    return sum(d) if 1 in d else ''.join(d)\n"
    (folder / "solutions.json").write_text(json.dumps([code]))
    benchmark = load("apps", data=str(tmp_path), shots=0)
    samples = reference_samples(benchmark).by_key
    [result] = score(benchmark, samples, executor, tmp_path)
    assert result["passed"], result["result"]
    # Without tests nothing is shown, whatever the kind of the problem.
    (folder / "input_output.json").write_text(json.dumps({"fn_name": "joined", "inputs": []}))
    benchmark = load("apps", data=str(tmp_path), shots=0)
    [result] = score(benchmark, samples, executor, tmp_path)
    assert (result["passed"], result["result"]) == (False, "no tests")


def test_prompts_are_the_papers(files):
    mbpp = load("mbpp", data=files["mbpp"])
    assert [task.task_id for task in mbpp.tasks] == ["11", "12"]  # of the test split
    assert (
        mbpp.tasks[1].prompt.count("[BEGIN]") == 4
        and mbpp.tasks[1].prompt.endswith("[BEGIN]")
        and "\r" not in mbpp.tasks[1].prompt
    )
    apps = load("apps", data=files["apps"])
    assert apps.tasks[0].prompt.count("Q: ") == 3 and apps.tasks[0].prompt.count("A: '''") == 3
    assert {task.group for task in apps.tasks} == {"introductory", "interview"}
    humaneval = load("humaneval", data=files["humaneval"])
    assert humaneval.tasks[0].prompt.endswith('"""')
    translation = load("humaneval_x", data=files["x_cpp"], source=files["x_python"]).tasks[0]
    assert (
        translation.prompt.startswith("code translation\nPython:\ndef double(x):\n    return 2 * x")
        and '"""' not in translation.prompt
    )
    docstrings = load("docstring", data=files["docstring"]).tasks
    assert (
        len(docstrings) == 1
        and docstrings[0].prompt.endswith('"""\x20')
        and '"""' not in docstrings[0].suffix
    )
    gsm8k = load("gsm8k", data=files["gsm8k/test"], shots=1)
    assert len(gsm8k.tasks) == 2 and "<<" not in gsm8k.tasks[0].prompt


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 + 2 = 8", 8),
        ("#### 1,234", 1234),
        ("The answer is 7. Or 8", 7),
        ("-3.5 apples", -3.5),
        ("none", None),
        ("it is 9.\n#### 12 of 13", 12),
        ("-$5", -5),
        (".5", 0.5),
        ("The answer is $.75 each", 0.75),
        ("#### -$.5", -0.5),
        ("There are 10 apples.5 are red, so 10-5=5.", 5),
        ("version 1.2.5", 5),
        ("\N{MINUS SIGN}$5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("$-5", -5),
        ("$\N{MINUS SIGN}1,200.50 in all", -1200.5),
        ("#### -€7", -7),
        ("$10-$5", 5),
        ("10\N{MINUS SIGN}5", 5),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 2", "1\n2", False),
        ("0.3333333333", "0.33333333334", True),
        ("1", "1 1", False),
        (" a \n\nb", "a\nb", True),
        ("1000000007", "1000000008", False),
        ("2" + 400 * "0", "3" + 400 * "0", False),
        ("007", "7", True),
        ("-0 +7", "0 7", True),
        ("--7", "-7", False),
        ("²", "2", False),
    ],
)
def test_outputs_are_compared(written, expected, same):
    assert same_output(written, expected) == same


def test_a_million_digits_are_compared_at_once():
    start = time.process_time()
    assert not same_output(1_000_000 * "9", "7") and same_output(1_000_000 * "0" + "7", "+7")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [("humaneval", "mbpp", "no prompt, entry_point"), ("mbpp", "humaneval", "no code, test_list")],
)
def test_a_file_of_another_benchmark_is_named(file, line, message, files):
    with pytest.raises(UserError, match=message):
        load(file, data=files[line])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "last line of .*bad.jsonl was not written"),
        ("{\n", "line 1 of .*bad.jsonl is not valid JSON"),
        ("", "bad.jsonl is empty"),
        (None, "no file or folder"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load("humaneval", data=str(path))


@pytest.mark.skipif(not DATA.exists(), reason="needs the published files")
@pytest.mark.parametrize(
    ("name", "file", "babble", "options"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", NEXT, {}),
        ("mbpp", "mbpp/mbpp.jsonl", "\n[DONE]\n", {"all_tasks": True}),
        ("humaneval_x", "humaneval_x/humaneval_cpp.jsonl.gz", BRACE, {}),
        ("humaneval_x", "humaneval_x/humaneval_java.jsonl.gz", BRACE, {}),
        ("humaneval_x", "humaneval_x/humaneval_js.jsonl.gz", BRACE, {}),
        ("humaneval_x", "humaneval_x/humaneval_go.jsonl.gz", BRACE, {}),
        ("humaneval_x", "humaneval_x/humaneval_python.jsonl.gz", NEXT, {}),
        (
            "humaneval_infilling",
            "humaneval_infilling/HumanEval-RandomSpanInfillingLight.jsonl.gz",
            "",
            {},
        ),
        (
            "humaneval_infilling",
            "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.gz",
            "more\n",
            {},
        ),
        ("gsm8k", "gsm8k/test.jsonl", "\nQuestion:", {}),
    ],
)
def test_published_solutions_come_through_llama_2s_tokens(name, file, babble, options, monkeypatch):
    """The completion is the canonical solution, except for white space at its end.

    CPP/94 is left out: it ends elsewhere than by the published rule, which stops at the brace that
    closes the function.
    """
    tokenizer = files.load(DATA / "tokenizer_llama2" / "tokenizer.model")
    model = TrainedModel(
        LlamaConfig(tokenizer.vocab_size, 8, 1, 1, 1, 8, 8), {}, tokenizer, "knowing"
    )
    benchmark = load(name, data=str(DATA / file), **options)
    tasks = [task for task in benchmark.tasks if task.task_id != "CPP/94"]
    benchmark = dataclasses.replace(benchmark, tasks=tasks[:: max(1, len(tasks) // 40)])
    knows(model, benchmark, babble, False, monkeypatch)
    known = {
        task.task_id: benchmark.finish(task, task.reference).rstrip() for task in benchmark.tasks
    }
    for batch in answers.answers(model, benchmark, Settings(), set()):
        for sample in batch:
            assert sample["completion"].rstrip() == known[sample["task_id"]]
