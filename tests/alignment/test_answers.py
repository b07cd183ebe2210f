"""A request that failed is counted, a model that always fails ends with one line."""

import json

import pytest

from codellama_jax.alignment.answers import MOST_FAILED, Failure, answered
from codellama_jax.errors import UserError

REFUSED = Failure("answers 400 Bad Request", "http://server")
GONE = Failure("cannot be reached", "http://server", is_final=True)


class Model:
    """Answers with the number of the request, except for those in `failures`."""

    def __init__(self, failures):
        self.failures = failures
        self.numbers = []

    def __call__(self, requests, at_once):
        for index, request in enumerate(requests):
            number = int(request.name.split()[-1])
            self.numbers.append(number)
            yield index, self.failures.get(number, str(number))


def ask(path, model, count=6, batch=2):
    conversations = {("q", number): [] for number in range(count)}
    return answered(model, conversations, path, batch)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("failed", [[2], [0, 1], [4, 5], [0, 3, 5]])
def test_a_failed_request_is_kept_and_not_made_again(tmp_path, failed):
    path = tmp_path / "answers.jsonl"
    replies = ask(path, Model(dict.fromkeys(failed, REFUSED)))
    assert list(replies) == [("q", number) for number in range(6)]
    for (_, number), reply in replies.items():
        assert reply == (REFUSED if number in failed else str(number))
    assert sorted(line["sample"] for line in lines_of(path) if "failure" in line) == failed
    again = Model({})
    replies = ask(path, again)
    assert not again.numbers
    assert [reply.reason for reply in replies.values() if isinstance(reply, Failure)] == [
        REFUSED.reason
    ] * len(failed)


def test_a_model_that_answers_nothing_is_one_line_and_asked_again(tmp_path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(UserError, match=r"^http://server answers 400 Bad Request: check the URL"):
        ask(path, Model(dict.fromkeys(range(6), REFUSED)))
    assert not path.exists()
    assert list(ask(path, Model({})).values()) == list("012345")


def test_a_model_that_answers_no_more_is_one_line_with_its_answers_saved(tmp_path):
    path = tmp_path / "answers.jsonl"
    model = Model(dict.fromkeys(range(3, 100), REFUSED))
    with pytest.raises(UserError, match="answers 400 Bad Request"):
        ask(path, model, count=100, batch=1)
    assert len(model.numbers) == 3 + MOST_FAILED
    assert [line["text"] for line in lines_of(path)] == ["0", "1", "2"]


def test_a_server_that_ends_loses_no_answer_of_its_last_batch(tmp_path):
    path = tmp_path / "answers.jsonl"
    model = Model({1: REFUSED, 3: REFUSED, 4: GONE, 5: GONE})
    with pytest.raises(UserError, match=r"^http://server cannot be reached"):
        ask(path, model, batch=6)
    assert [line["text"] for line in lines_of(path)] == ["0", "2"]
    model = Model({})
    assert list(ask(path, model).values()) == list("012345")
    assert model.numbers == [1, 3, 4, 5]
