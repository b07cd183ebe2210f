"""Self-instruct and ranking as data stages, with stand-ins that know the generated functions."""

import dataclasses
import json

import pytest

from codellama_jax.alignment.pairs import Sampled
from codellama_jax.alignment.self_instruct import Amounts
from codellama_jax.alignment.stages import RankStage, SelfInstructStage, Writing
from codellama_jax.checked import FieldError
from codellama_jax.checkpoints.identity import data_identity
from codellama_jax.config import from_dict, to_dict
from codellama_jax.data import generated_functions as generated
from codellama_jax.data_stage import DataStage

WRITING = Writing(chat="pangu_coder2", prompts="toy", max_new_tokens=160)
SELF_INSTRUCT = SelfInstructStage("asker", "tester", "solver", Amounts(2, 3, 2, batch=4), WRITING)
RANK = RankStage(
    "student", ("teacher",), "functions", 3, Sampled(1, (0.5,), 1, batch=2), writing=WRITING
)
TRAINING, HELD_OUT = generated.training(), generated.held_out()
# Two lists: a repeated question, and one that the evaluation asks.
LISTS = [
    [TRAINING[0], TRAINING[1], TRAINING[0]],
    [TRAINING[2], TRAINING[3], HELD_OUT[0]],
]


def asked(request):
    """Returns the function that a prompt is about."""
    first = request.messages[0].content.removeprefix("Tests: ").split("\n")[0]
    return generated.asked_by(first)


def answer(model, request):
    """Returns the answer of a stand-in; the student's programs and every first solution fail."""
    content = request.messages[0].content
    if content.startswith("List"):
        listed = LISTS[int(request.name.split()[-1])]
        return "\n".join(f"{n}. {function.question}" for n, function in enumerate(listed, 1))
    function = asked(request)
    if content.startswith("Tests"):
        return "\n".join(generated.hidden_tests(function, 2))
    is_wrong = model == "student" or (model == "solver" and request.name.endswith(" 0"))
    return "def f(x):\n    return 0\n" if is_wrong else function.solution


@pytest.fixture
def answerers():
    def make(model, chat, sampling):
        assert (chat, sampling.max_new_tokens) == ("pangu_coder2", 160)

        def answer_all(requests, at_once):
            return enumerate([answer(model, request) for request in requests])

        return answer_all

    return make


@pytest.mark.parametrize("teachers", [("student",), ("runs/a", "runs/a/"), ("hf:a", "x/../a")])
def test_a_model_that_is_named_twice_is_refused(teachers):
    with pytest.raises(FieldError, match="no model may be named twice"):
        dataclasses.replace(RANK, teachers=teachers)


def test_a_stage_and_a_folder_of_the_same_name_are_two_models():
    assert dataclasses.replace(RANK, teachers=("./student",)).teachers == ("./student",)


def lines_of(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_self_instruct_counts_its_steps_and_leaves_out_the_evaluation(tmp_path, answerers):
    counts = SELF_INSTRUCT.make(answerers, tmp_path, seed=3)
    assert {name: counts[name] for name in ("questions", "different", "with_tests", "kept")} == {
        "questions": 6,
        "different": 5,
        "with_tests": 4,
        "kept": 4,
    }
    assert counts["reasons"]["a question of the evaluation"] == 1
    dataset = lines_of(tmp_path, SELF_INSTRUCT.output)
    questions = [line["messages"][0]["content"] for line in dataset]
    assert questions == [function.question for function in TRAINING[:4]]
    assert {line["sample"] for line in dataset} == {1}
    assert {line["seed"] for line in dataset} == {3}
    assert {line["question_model"] for line in dataset} == {"asker"}


def test_ranked_pairs_of_the_first_tasks(tmp_path, answerers):
    counts = RANK.make(answerers, tmp_path, seed=0)
    assert (counts["tasks"], counts["pairs"]) == (3, 3)
    assert counts["reasons"]["teacher: passed"] == 3
    pairs = lines_of(tmp_path, RANK.output)
    assert [pair["prompt"] for pair in pairs] == [function.question for function in TRAINING[:3]]
    assert [pair["chosen"] for pair in pairs] == [function.solution for function in TRAINING[:3]]


@pytest.mark.parametrize("stage", [SELF_INSTRUCT, RANK])
def test_a_data_stage_survives_its_file(stage):
    assert from_dict(DataStage, to_dict(stage)) == stage
    assert from_dict(type(stage), to_dict(stage)) == stage


def test_the_batch_changes_no_identity_and_the_amounts_do():
    def identity(amount):
        stage = SelfInstructStage("a", "a", "a", amount, WRITING)
        return data_identity(stage, 0, [])

    assert identity(Amounts(2, 3, batch=4)) == identity(Amounts(2, 3, batch=8))
    assert identity(Amounts(2, 3)) != identity(Amounts(2, 4))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"teachers": ()}, "teachers is empty"),
        ({"teachers": ("student",)}, "no model may be named twice"),
    ],
)
def test_a_student_needs_another_model(fields, problem):
    with pytest.raises(FieldError, match=problem):
        dataclasses.replace(RANK, **fields)
