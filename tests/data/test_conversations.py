"""Conversations and pairs in batches: loss on answers only, two segments per pair."""

import json

import numpy as np
import pytest

from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import pipeline
from codellama_jax.data.conversations import conversation_ids, is_conversation, pair_ids
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.tokenizers import sentencepiece
from codellama_jax.tokenizers.chat import FORMATS, Message

TALK = [("user", "Add 1 to x."), ("assistant", "return x + 1")]


def text_of(*messages):
    turns = [{"role": role, "content": content} for role, content in messages]
    return conversations.canonical_text({"messages": turns})


def pair_of(number, difference=0.5):
    row = {
        "prompt": f"Add {number}.",
        "chosen": f"return x + {number}\n",
        "rejected": f"return {number}\n",
        "chosen_score": difference,
        "rejected_score": 0.0,
    }
    return conversations.canonical_text(row)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["[INST] Add 1 to x. [/INST] return x + 1\ndef f(x):\n    return x"] * 30
    return sentencepiece.train(texts, 310, tmp_path_factory.mktemp("tokenizer"))


def batch_of(tokenizer, texts, **options):
    documents = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    data = DataConfig(128, 2, MixtureConfig(code=1.0), InfillingConfig(0.0), **options)
    batches = pipeline.DirectBatches({"code": documents}, data, tokenizer, 0, range(2))
    return next(batches)


def test_other_documents_are_not_taken_for_conversations():
    assert is_conversation(text_of(*TALK))
    assert not is_conversation('{"messages": 3}')
    assert not is_conversation('messages = [{"role": "user"}]')


def test_only_answers_are_learned(tokenizer):
    batch = batch_of(tokenizer, [text_of(*TALK), "x = 1\n"], chat="llama2")
    documents, weights = batch["documents"], batch["weights"]
    learned = batch["targets"][(documents == 0) & (weights == 1)].tolist()
    assert set(learned) == {*tokenizer.encode("return x + 1 "), tokenizer.eos_id}
    assert np.all(weights[documents == 1] == 1)  # rehearsal: every token of other documents
    assert np.any((documents == 0) & (weights == 0))


def test_without_a_format_conversations_are_text(tokenizer):
    batch = batch_of(tokenizer, [text_of(*TALK)])
    assert np.all(batch["weights"][batch["segment_ids"] > 0] == 1)


@pytest.mark.parametrize(
    "text",
    [
        text_of(("user", "x"), ("user", "y"), ("assistant", "z")),
        text_of(("user", "a [/INST] b"), ("assistant", "c")),
        text_of(("user", "x")),
        '{"messages": [1, 2]}',
        '{"messages": [',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [' + "[" * 100_000,
        *(
            '{"messages": [{"role": "user", "content": ' + content + "},"
            ' {"role": "assistant", "content": "b"}]}'
            for content in ("null", "5", '{"a": 1}', '["[INST]"]', '"\\ud800"')
        ),
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
    ],
)
def test_a_conversation_that_has_no_form_is_left_out(tokenizer, text):
    assert conversation_ids(tokenizer, text, "llama2") == ([], [])
    batch = batch_of(tokenizer, [text, text_of(*TALK)], chat="llama2")
    assert set(np.unique(batch["documents"])) <= {-1, 1}


def test_messages_after_the_last_answer_are_left_out(tokenizer):
    longer = text_of(*TALK, ("user", "Thanks!"))
    assert conversation_ids(tokenizer, longer, "llama2") == conversation_ids(
        tokenizer, text_of(*TALK), "llama2"
    )


def test_the_answers_of_a_pair_are_two_segments_of_one_sequence(tokenizer):
    texts = [pair_of(number, 0.25 * number) for number in range(1, 5)]
    batch = batch_of(tokenizer, texts, examples="pairs", chat="pangu_coder2")
    rows = zip(*(batch[name] for name in ("segment_ids", "positions", "weights", "documents")))
    pairs = 0
    for segments_T, positions_T, weights_T, documents_T in rows:
        last = int(segments_T.max())
        assert last % 2 == 0
        for segment in range(1, last + 1):
            inside_T = segments_T == segment
            count = int(inside_T.sum())
            assert positions_T[inside_T].tolist() == list(range(count))
            (document,) = np.unique(documents_T[inside_T])
            sign = 1 if segment % 2 else -1
            learned = np.unique(weights_T[inside_T]).tolist()
            assert sorted(abs(x) for x in learned) == [0.0, 0.25 * (document + 1)]
            assert sign * sum(learned) > 0
            pairs += segment % 2
    assert pairs >= 4


def test_tokens_of_a_pair_are_those_of_the_format(tokenizer):
    (chosen, signed), (rejected, _) = pair_ids(tokenizer, pair_of(1, 0.5), "pangu_coder2")
    messages = [Message("user", "Add 1."), Message("assistant", "return x + 1\n")]
    sample = FORMATS["pangu_coder2"].sample(tokenizer, messages)
    assert chosen == sample.ids
    assert signed == [0.5 * weight for weight in sample.weights]
    assert chosen != rejected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 0, "rejected_score": 0},
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": "x"},
        {"prompt": 1, "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": float("nan")},
    ],
)
def test_a_pair_without_an_order_is_damaged(row):
    assert conversations.canonical_text(row) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"difference": "NaN"},
        {"difference": "Infinity"},
        {"difference": "1e300"},
        {"difference": "0"},
        {"difference": "-1"},
        {"prompt": "1"},
        {"chosen": "null"},
        {"rejected": '"\\ud800"'},
    ],
)
def test_a_pair_that_cannot_be_ranked_is_left_out(tokenizer, changed):
    values = {"prompt": '"a"', "chosen": '"b"', "rejected": '"c"', "difference": "1", **changed}
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
    assert pair_ids(tokenizer, text, "pangu_coder2") == ()


def test_a_score_beyond_any_float_is_damaged():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_score": 10**400}
    assert conversations.canonical_text(row) is None


def test_alpaca_records_are_conversations():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert conversations.columns_of(tuple(row)) == ("instruction", "output", "input")
    messages = json.loads(conversations.canonical_text(row))["messages"]
    assert messages[0] == {"role": "user", "content": "Add.\n\n1 2"}
    assert messages[1] == {"role": "assistant", "content": "3"}


def test_only_completions_are_learned(tokenizer):
    row = {"prompt": "def f(x):\n", "completion": "    return x + 1\n"}
    text = conversations.canonical_text({name: row[name] for name in ("prompt", "completion")})
    batch = batch_of(tokenizer, [text, "no record", text * 40], examples="completions")
    learned = batch["targets"][0][batch["weights"][0] == 1][: len(row["completion"])].tolist()
    completion = tokenizer.encode(row["completion"], leading_space=False)
    assert learned[: len(completion) + 1] == [*completion, tokenizer.eos_id]
    given = batch["tokens"][0][: len(tokenizer.prompt(row["prompt"]))].tolist()
    assert given == tokenizer.prompt(row["prompt"])
    assert set(np.unique(batch["documents"])) <= {-1, 0}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("prompt", "completion"), ("prompt", "completion")),
        (("prompt", "completion", "text"), ()),
        (("prompt", "completion", "messages"), ("messages",)),
    ],
)
def test_a_table_with_texts_holds_no_completions(columns, expected):
    assert conversations.columns_of(columns) == expected
