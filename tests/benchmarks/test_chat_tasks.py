"""Chat models are prompted in their chat format; the code of an answer becomes a program."""

import dataclasses
import json

import pytest
import small_data as data

from codellama_jax.benchmarks import answers, chat, evaluate, out_folder
from codellama_jax.benchmarks.found_model import FoundModel
from codellama_jax.benchmarks.settings import Checking, Options, PromptOptions, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.benchmarks.suites.mbpp import MbppOptions
from codellama_jax.errors import UserError
from codellama_jax.tokenizers.chat import FORMATS, Message

BODY = "    return 2 * x\n"


def chat_form(name: str, files, **options):
    benchmark = load(name, data=files[name], **options)
    return benchmark, chat.as_questions(benchmark)


@pytest.mark.parametrize(
    "answer",
    [
        "```python\ndef double(x):\n    return 2 * x\n```\nIt doubles x.",
        "[PYTHON]\ndef double(x):\n    return 2 * x\n[/PYTHON]",
        "def double(x):\n    return 2 * x",
        f"```python\n{BODY}```",
        "```python\ndef other():\n    pass\n```\n```python\ndef double(x):\n    return 2 * x\n```",
        "```python\ndef double(x):\n    return 2 * x",  # not closed
    ],
)
def test_the_code_of_an_answer_passes_the_tests_of_a_function(answer, files, executor):
    benchmark = load("humaneval", data=files["humaneval"])
    task = benchmark.tasks[0]
    sample = benchmark.chat.fields(task, answer)
    assert sample["answer"] == answer
    (check,) = benchmark.program_checks(task, sample["solution"])
    ((_, verdict),) = executor.run([check.program])
    assert check.accepts(verdict), sample


def test_an_answer_without_code_has_a_reason_and_still_a_program():
    task = data.DOUBLE
    benchmark_task = dataclasses.make_dataclass("Task", ["record"])(task)
    sample = chat.function_solution(benchmark_task, "I cannot help with that.")
    assert sample[chat.PROBLEM] == "no code"
    assert chat.problems([sample, sample, {"solution": ""}]) == {"no code": 2}


def test_the_question_of_mbpp_is_the_papers_zero_shot_prompt(files):
    benchmark, questions = chat_form("mbpp", files, shots=0, all_tasks=True)
    task = questions.tasks[0]
    assert benchmark.tasks[0].prompt == f"[INST] {task.prompt} [/INST]"
    assert task.prompt.startswith("You are an expert Python programmer, and here is your task:")
    assert task.prompt.endswith("Put your code between [PYTHON] and [/PYTHON] tags.")
    assert load("mbpp", data=files["mbpp"], all_tasks=True).chat is None


def test_the_format_is_that_of_the_models_training_unless_another_is_named(model, files):
    benchmark = load("humaneval", data=files["humaneval"])
    options = PromptOptions(files["humaneval"])
    trained = dataclasses.replace(model, chat="llama2")

    def format_of(settings, of=trained, suite=benchmark):
        return chat.resolved(settings, suite, options, of).chat_format

    assert format_of(Settings()) == "llama2"
    assert format_of(Settings(), model) == "none"
    assert format_of(Settings(chat_format="none")) == "none"
    assert format_of(Settings(chat_format="code_llama_70b")) == "code_llama_70b"
    assert format_of(Settings(), suite=load("lcc", data=files["lcc"])) == "none"
    with pytest.raises(UserError, match="--context-tokens 9 has no effect on a conversation"):
        format_of(Settings(context_tokens=9))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lcc", Options, "--chat-format llama2: lcc has no chat form"),
        ("mbpp", MbppOptions, "--chat-format llama2: mbpp has no chat form: .* mbpp --shots 0"),
        ("humaneval", PromptOptions, "--prompt codex is a prompt to continue"),
    ],
)
def test_a_format_without_effect_is_refused(name, options, message, files, tmp_path):
    given = {"prompt": "codex"} if name == "humaneval" else {}
    if name == "lcc":
        options = evaluate.suite_of(name).options
    elif name == "mbpp":
        given["all_tasks"] = True
    settings = Settings(chat_format="llama2")
    with pytest.raises(UserError, match=message):
        evaluate.prepare(
            name, True, options(files[name], **given), settings, Checking(), tmp_path, "", False
        )


def test_answers_continue_the_conversation_and_results_name_its_format(
    model, files, executor, tmp_path, monkeypatch
):
    trained = dataclasses.replace(model, chat="llama2")
    prompts = []
    question = load("humaneval", data=files["humaneval"]).chat.question
    original = answers.generate_answers

    def generate_answers(model, chat_format, ids, *arguments):
        prompts.extend(ids)
        return original(model, chat_format, ids, *arguments)

    monkeypatch.setattr(answers, "generate_answers", generate_answers)
    settings = Settings(samples=2, max_new_tokens=6, temperature=1.0)
    arguments = (PromptOptions(files["humaneval"]), settings, Checking(workers=1), tmp_path)
    evaluate.evaluate("humaneval", lambda: trained, *arguments)
    expected = []
    for task in load("humaneval", data=files["humaneval"]).tasks:
        message = Message("user", question(task))
        expected.append(FORMATS["llama2"].prompt_ids(model.tokenizer, [message]))
    assert all(ids in expected for ids in prompts) and len(prompts) == 4
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["prompt"] == "chat format llama2"
    assert sum(results["answers without a program"].values()) == 4
    sample = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert {"solution", "answer", "problem", "mean_logprob"} <= set(sample)
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["chat_format"] == (
        "llama2"
    )
    # The same command, and one that names the format, continue; another format is refused.
    named = dataclasses.replace(settings, chat_format="none")
    with pytest.raises(UserError, match=r"settings.chat_format: llama2 -> none"):
        evaluate.evaluate("humaneval", lambda: trained, arguments[0], named, *arguments[2:])


@pytest.mark.parametrize(
    ("chat_format", "name", "message"),
    [
        ("template", "first", "template"),
        (
            "none",
            "second",
            r"drawn in another way \(model: first -> second\): choose another --out",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(
    model, files, tmp_path, chat_format, name, message
):
    options, settings = PromptOptions(files["humaneval"]), Settings(chat_format=chat_format)
    inputs = "humaneval", True, options, settings, Checking(workers=1), tmp_path
    prepared = evaluate.prepare(*inputs, "", False)
    request = evaluate.request_of(prepared, prepared.benchmark, options)
    out_folder.open_folder(tmp_path, {**request, "model": "first"})
    found = FoundModel(name, model.tokenizer)
    with pytest.raises(UserError, match=message):
        evaluate.evaluate("humaneval", pytest.fail, *inputs[2:], find_model=lambda: found)
