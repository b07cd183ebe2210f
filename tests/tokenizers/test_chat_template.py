"""Chat templates of imported models: ids equal transformers', answers alone have loss."""

import json

import pytest

from codellama_jax.errors import UserError
from codellama_jax.tokenizers import byte_bpe, files, sentencepiece
from codellama_jax.tokenizers.chat import ConversationError, Message
from codellama_jax.tokenizers.chat_template import TemplateChat, has_template

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [Message("user", "Add 1 and 2."), Message("assistant", "3"), Message("user", "And [INST]?")]
ANSWERED = [*TALK, Message("assistant", "Hi 7")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer.json with the special tokens of ChatML, and a tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("model")
    trained = byte_bpe.train(["Add 1 and 2. system user assistant"] * 5, 290, "gpt2", folder)
    spec = json.loads(trained.model)
    spec.pop("codellama_jax")
    spec["post_processor"] = None
    largest = max([*spec["model"]["vocab"].values(), *(t["id"] for t in spec["added_tokens"])])
    for number, name in enumerate(("<|im_start|>", "<|im_end|>"), 1):
        entry = {"id": largest + number, "content": name, "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        spec["added_tokens"].append(entry | flags)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return files.load(folder / "tokenizer.json")


def text_of(tokenizer, ids, chat):
    by_id = {row: name for name, row in chat._special.items()}
    return "".join(by_id.get(i) or tokenizer.decode([i]) for i in ids)


def test_ids_equal_those_of_transformers(folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = TemplateChat(tokenizer)
    for talk in (TALK, [Message("system", "Be brief."), *TALK]):
        messages = [message._asdict() for message in talk]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)
        ids = expected if isinstance(expected, list) else expected["input_ids"]
        assert chat.prompt_ids(tokenizer, talk) == ids


def test_the_text_is_that_of_the_template(tokenizer):
    chat = TemplateChat(tokenizer)
    text = text_of(tokenizer, chat.prompt_ids(tokenizer, TALK), chat)
    system = "<|im_start|>system\nYou are helpful.<|im_end|>\n"
    turns = "<|im_start|>user\nAdd 1 and 2.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    last = "<|im_start|>user\nAnd [INST]?<|im_end|>\n<|im_start|>assistant\n"
    assert text == system + turns + last


def test_only_answers_and_their_ends_have_loss(tokenizer):
    chat = TemplateChat(tokenizer)
    sample = chat.sample(tokenizer, ANSWERED)
    trained = [i for i, weight in zip(*sample) if weight]
    assert text_of(tokenizer, trained, chat) == "3<|im_end|>Hi 7<|im_end|>"
    assert chat.stop_ids(tokenizer) == (tokenizer.eos_id,)


def test_a_mark_before_an_answer_does_not_end_it(folder, tmp_path):
    """As Qwen3's template, which writes an empty thought before an answer."""
    turn = "'<|im_start|>' + message.role + '\n'"
    thought = "('<|think|>\n' if message.role == 'assistant' else '')"
    template = (
        f"{{% for message in messages %}}{{{{ {turn} + {thought} + message.content"
        " + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with_template(folder, tmp_path, template)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    largest = spec["added_tokens"][-1]
    spec["added_tokens"].append({**largest, "id": largest["id"] + 1, "content": "<|think|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = files.load(tmp_path / "tokenizer.json")
    assert TemplateChat(tokenizer).stop_ids(tokenizer) == (tokenizer.eos_id,)


def test_the_default_of_several_templates_is_taken(folder, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    tokenizer, one = files.load(tmp_path), files.load(folder)
    prompt = TemplateChat(tokenizer).prompt_ids(tokenizer, TALK)
    assert prompt == TemplateChat(one).prompt_ids(one, TALK)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": [5, named[0]]})
    )
    assert not has_template(files.load(tmp_path))


@pytest.mark.parametrize("number", range(3))
def test_a_special_token_in_a_message_is_refused(tokenizer, number):
    talk = list(TALK)
    talk[number] = talk[number]._replace(content="a <|im_end|> b")
    with pytest.raises(ConversationError, match=rf"message {number + 1} contains <\|im_end\|>"):
        TemplateChat(tokenizer).prompt_ids(tokenizer, talk)


def with_template(folder, tmp_path, template):
    """Returns the tokenizer with another template, from a file of its own."""
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return files.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system prompt') }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages[9].content }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_a_template_that_fails_or_reaches_for_python_is_one_line(folder, tmp_path, template):
    tokenizer = with_template(folder, tmp_path, template)
    with pytest.raises(ConversationError, match="chat template refuses") as error:
        TemplateChat(tokenizer).prompt_ids(tokenizer, TALK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content | tojson }}", '"<e>"'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "<e>"),
        ("{{ strftime_now('%%') }}", "%"),
    ],
)
def test_a_template_has_the_functions_of_transformers(folder, tmp_path, template, text):
    tokenizer = with_template(folder, tmp_path, template)
    chat = TemplateChat(tokenizer)
    assert text_of(tokenizer, chat.prompt_ids(tokenizer, [Message("user", "<e>")]), chat) == text


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{% for a in messages %}" * 25 + "{% endfor %}" * 25, "{{ " + "(" * 3000 + " }}"],
)
def test_a_template_that_is_no_jinja_is_one_line(folder, tmp_path, template):
    tokenizer = with_template(folder, tmp_path, template)
    with pytest.raises(UserError, match="is no Jinja"):
        TemplateChat(tokenizer)


def test_a_tokenizer_without_a_template(tmp_path):
    tokenizer = sentencepiece.train(["abc def"] * 9, 300, tmp_path)
    assert not has_template(tokenizer)
    with pytest.raises(UserError, match="has no chat template: name a format"):
        TemplateChat(tokenizer)
