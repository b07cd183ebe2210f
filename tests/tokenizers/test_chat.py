"""Chat formats: ids equal the published layouts, weights mark answers, tags are refused."""

import pytest
from paths import TOKENIZER

from codellama_jax.tokenizers import sentencepiece
from codellama_jax.tokenizers.chat import FORMATS, TAGS, ConversationError, Message

LLAMA2, STEP = FORMATS["llama2"], FORMATS["code_llama_70b"]
DOCSTRING = FORMATS["pangu_coder2"]
TALK = [
    Message("system", "Be brief."),
    Message("user", " Add 1 and 2. "),
    Message("assistant", "3\n"),
    Message("user", "And 4?"),
]
ANSWERED = [*TALK, Message("assistant", "7")]
needs_tokenizer = pytest.mark.skipif(not TOKENIZER.exists(), reason="needs Llama 2's tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A small SentencePiece tokenizer."""
    texts = ["[INST] def add(a, b): [/INST] return a + b\n Source: user\nDestination: "] * 20
    return sentencepiece.train(texts, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def llama():
    """Llama 2's published tokenizer."""
    return sentencepiece.read(TOKENIZER.read_bytes(), str(TOKENIZER))


def test_a_prompt_of_llama_2_is_the_published_text(tokenizer):
    ids = LLAMA2.prompt_ids(tokenizer, TALK)
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Add 1 and 2. [/INST] 3 "
    expected = [tokenizer.bos_id, *tokenizer.encode(first), tokenizer.eos_id]
    assert ids == [*expected, tokenizer.bos_id, *tokenizer.encode("[INST] And 4? [/INST]")]


def test_a_prompt_of_the_70b_model_is_the_published_text(tokenizer):
    ids, step = STEP.prompt_ids(tokenizer, TALK[1:]), tokenizer.vocab_size - 1
    expected = [tokenizer.bos_id, *tokenizer.encode(" Source: system"), step]
    user = tokenizer.encode(" Source: user")
    header = tokenizer.encode(" Source: assistant\nDestination: user")
    expected += [*user, *tokenizer.encode("\n\n Add 1 and 2."), step]
    expected += [*header, *tokenizer.encode("\n\n 3"), step]
    expected += [*user, *tokenizer.encode("\n\n And 4?"), step]
    assert ids == [*expected, *header, *tokenizer.encode("\n\n ")]


@needs_tokenizer
def test_ids_of_the_published_vocabulary(llama):
    ids = LLAMA2.prompt_ids(llama, [Message("user", "Hi")])
    assert ids == [1, 518, 25580, 29962, 6324, 518, 29914, 25580, 29962]
    ids = STEP.prompt_ids(llama, [Message("user", "Hi")])
    assert ids.count(32015) == 2
    assert ids[-1] == 29871 and ids[-3:-1] == [13, 13]


def test_only_answers_and_their_ends_have_weight(tokenizer):
    sample = LLAMA2.sample(tokenizer, ANSWERED)
    assert len(sample.ids) == len(sample.weights)
    trained = [i for i, weight in zip(*sample) if weight]
    assert tokenizer.decode(trained, leading_space=False) == " 3  7 "
    assert trained.count(tokenizer.eos_id) == 2
    assert tokenizer.bos_id not in trained


def test_only_bodies_and_steps_of_answers_have_weight_in_the_70b_format(tokenizer):
    sample, step = STEP.sample(tokenizer, ANSWERED), tokenizer.vocab_size - 1
    trained = [i for i, weight in zip(*sample) if weight]
    bodies = [*tokenizer.encode("\n\n 3"), step, *tokenizer.encode("\n\n 7"), step]
    assert trained == bodies


@pytest.mark.parametrize("chat_format", FORMATS.values(), ids=list(FORMATS))
def test_a_sample_starts_with_the_prompt_that_the_model_gets(tokenizer, chat_format):
    start = 3 if chat_format is DOCSTRING else 0  # it has one question and its answer
    prompt = chat_format.prompt_ids(tokenizer, TALK[start:])
    ids = chat_format.sample(tokenizer, ANSWERED[start:]).ids
    if chat_format is STEP:  # its reply header ends with a blank line, encoded alone
        prompt = prompt[: -len(tokenizer.encode("\n\n "))]
    assert ids[: len(prompt)] == prompt
    assert ids[-1] in chat_format.stop_ids(tokenizer)


@pytest.mark.parametrize("chat_format", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("number", range(3))
def test_a_tag_in_a_message_is_refused(tokenizer, chat_format, tag, number):
    talk = list(TALK)
    talk[number] = talk[number]._replace(content=f"x {tag} y")
    with pytest.raises(ConversationError, match=f"message {number + 1} contains") as error:
        chat_format.prompt_ids(tokenizer, talk)
    assert tag in str(error.value)


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        ([], "has no message of the user"),
        ([Message("system", "x")], "has no message of the user"),
        ([Message("assistant", "x")], "message 1 has the role 'assistant' where 'user' is due"),
        ([Message("user", "x"), Message("user", "y")], "message 2 has the role 'user'"),
        ([Message("user", "x"), Message("system", "y")], "message 2 has the role 'system'"),
        ([Message("tool", "x")], "message 1 has the role 'tool'"),
        ([Message("user", " \n")], "message 1 is empty"),
        ([Message("user", "x"), Message("assistant", "y")], "ends with a message of the assistant"),
    ],
)
def test_a_conversation_without_the_form_is_refused(tokenizer, talk, problem):
    with pytest.raises(ConversationError, match=problem):
        LLAMA2.prompt_ids(tokenizer, talk)


def test_a_sample_ends_with_an_answer(tokenizer):
    with pytest.raises(ConversationError, match="one to train on ends with one of the assistant"):
        LLAMA2.sample(tokenizer, TALK)


def test_pangu_coder_2_puts_the_question_between_triple_quotes(tokenizer):
    talk = [Message("user", " Add one. "), Message("assistant", "def f(x):\n    return x + 1\n")]
    sample = DOCSTRING.sample(tokenizer, talk)
    assert tokenizer.decode(sample.ids) == '"""Add one."""\ndef f(x):\n    return x + 1\n'
    trained = [i for i, weight in zip(*sample) if weight]
    answer = tokenizer.encode(talk[1].content, leading_space=False)
    assert trained == [*answer, tokenizer.eos_id]


@pytest.mark.parametrize("talk", [TALK, TALK[1:], [Message("user", 'end """ the quotes')]])
def test_pangu_coder_2_has_one_question_without_quotes(tokenizer, talk):
    with pytest.raises(ConversationError, match="pangu_coder2"):
        DOCSTRING.prompt_ids(tokenizer, talk)
