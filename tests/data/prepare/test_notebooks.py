"""Notebooks and conversations, in files and in tables."""

import json

import pytest
from etils import epath
from reading import TABLES, read_all, reasons

from codellama_jax.data.prepare.documents import WriteDocuments
from codellama_jax.data.prepare.inputs import InputOptions, parts_of
from codellama_jax.data.prepare.parts import read_rows
from codellama_jax.data.prepare.policies import Policy
from codellama_jax.data.prepare.readers import (
    conversations,
    notebooks,
)
from codellama_jax.data.prepare.records import Record
from codellama_jax.data.prepare.stages import StageFolder

# ---------------------------------------------------------------- notebooks


def cell(kind, source, *outputs):
    lines = source.splitlines(keepends=True)
    if kind != "code":
        return {"cell_type": kind, "source": lines}
    return {"cell_type": kind, "source": lines, "outputs": [{"text": o} for o in outputs]}


def notebook(*cells, **metadata):
    return json.dumps({"cells": list(cells), "metadata": metadata, "nbformat": 4})


EXAMPLE = (
    cell("code", "import first\n"),
    cell("markdown", "# Title\n\ntext"),
    cell("markdown", "more"),
    cell("code", "%matplotlib inline\nx = 1 % 2\nx?\n!ls"),
    cell("code", ""),
    cell("code", "print(x)", ["1\n"], "second"),
    cell("markdown", "end"),
    cell("code", "y = 2"),
    cell("markdown", "goodbye"),
)


def test_a_notebook_as_a_script():
    result = notebooks.converted(notebook(*EXAMPLE), "script")
    assert result.language == "Python"
    assert result.text == (
        "# %%\nimport first\n\n"
        "# %% [markdown]\n# # Title\n#\n# text\n\n"
        "# %% [markdown]\n# more\n\n"
        "# %%\n# %matplotlib inline\nx = 1 % 2\n# x?\n# !ls\n\n"
        "# %%\nprint(x)\n\n"
        "# %% [markdown]\n# end\n\n"
        "# %%\ny = 2\n\n"
        "# %% [markdown]\n# goodbye\n"
    )
    compile(result.text, "script", "exec")


def test_a_notebook_between_sentinels():
    result = notebooks.converted(notebook(*EXAMPLE), "structured")
    assert result.language == "Jupyter Notebook"
    assert result.text == (
        "<jupyter_start><jupyter_text># Title\n\ntext\nmore"
        "<jupyter_code>%matplotlib inline\nx = 1 % 2\nx?\n!ls\nprint(x)<jupyter_output>1\n"
        "<jupyter_text>end<jupyter_code>y = 2<jupyter_output><empty_output>"
    )


@pytest.mark.parametrize(
    "source, expected",
    [
        ("%load x\ny = 1", "# %load x\ny = 1"),
        ("%%time\nf()", "# %%time\nf()"),
        ("%%bash\nls -l\n", "# %%bash\n# ls -l"),
        ("if x:\n    !ls", "if x:\n    # !ls"),
        ("y = (x\n     % z)", "y = (x\n     % z)"),
        ("y = (x\n != z)", "y = (x\n != z)"),
        ('s = """\n%(name)s\n"""', 's = """\n%(name)s\n"""'),
        ("help(f)\nf??\n?f", "help(f)\n# f??\n# ?f"),
    ],
)
def test_commands_of_ipython(source, expected):
    result = notebooks.converted(notebook(cell("code", source)), "script")
    assert result.text == f"# %%\n{expected}\n"


@pytest.mark.parametrize(
    "metadata, language, comment",
    [
        ({}, "Python", "#"),
        ({"language_info": {"name": "ipython", "version": "3"}}, "Python", "#"),
        ({"kernelspec": {"name": "ir", "language": "R"}}, "R", "#"),
        ({"language_info": {"name": "julia"}}, "Julia", "#"),
        ({"language_info": {"name": "scala"}}, "Scala", "//"),
        ({"language_info": {"file_extension": ".hs"}}, "Haskell", "--"),
        ({"kernelspec": None}, "Python", "#"),
    ],
)
def test_the_language_of_a_notebook(metadata, language, comment):
    text = notebook(cell("markdown", "words"), **metadata)
    assert notebooks.converted(text, "script") == (
        f"{comment} %% [markdown]\n{comment} words\n",
        language,
    )


@pytest.mark.parametrize("form", ["script", "structured"])
def test_names_that_are_no_text_in_utf8(form):
    """JSON may hold half of a surrogate pair, which no file of the corpus can."""
    half, kind = "R\ud800", cell("\udfff", "words")
    text = notebook(kind, cell("code", "x"), language_info={"name": half})
    converted = notebooks.converted(text, form)
    assert converted.text.encode() and converted.language.encode()
    assert form == "structured" or converted == ("# %% [?]\n# words\n\n# %%\nx\n", "R?")


def test_notebooks_of_format_3():
    sheet = {"cells": [{"cell_type": "heading", "level": 2, "source": "A"},
                       {"cell_type": "code", "input": ["x = 1"], "outputs": []}]}  # fmt: skip
    text = json.dumps({"worksheets": [sheet], "metadata": {}, "nbformat": 3})
    assert notebooks.converted(text, "script").text == ("# %% [markdown]\n# ## A\n\n# %%\nx = 1\n")


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"cells": 1}', '{"cells": [1]}', '{"cells": [{}]}', "[1]", "{" * 10_000],
)
@pytest.mark.parametrize("form", ["script", "structured"])
def test_damaged_notebooks(text, form):
    assert notebooks.converted(text, form) is None


@pytest.mark.parametrize("form", ["script", "structured"])
def test_notebooks_of_files_and_tables(tmp_path, write_files, write_table, form):
    whole = notebook(cell("markdown", "a"), cell("code", "b"))
    write_files(
        tmp_path, {"a.ipynb": whole, "b.ipynb": "{damaged", "c.ipynb": notebook(), "d.ipynb": "[]"}
    )
    rows = [
        {"content": whole, "path": "x.ipynb", "lang": "Jupyter Notebook"},
        {"content": "<jupyter_start>done", "path": "x.ipynb", "lang": "Jupyter Notebook"},
    ]
    write_table(tmp_path / "z.jsonl", rows)
    results = read_all(tmp_path, InputOptions(notebooks=form))
    assert reasons(results) == ["", "damaged", "empty", "damaged", "", ""]
    expected = notebooks.converted(whole, form)
    assert [r.text for r in results if isinstance(r, Record)][:2] == [expected.text] * 2
    assert results[0].language == results[4].language == expected.language
    assert results[5].text == "<jupyter_start>done"


# ---------------------------------------------------------------- conversations

MESSAGES = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}]
CANONICAL = (
    '{"messages": [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}]}'
)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES, "id": "7"},
        {"conversations": [{"from": "human", "value": "héllo"}, {"from": "gpt", "value": "hi"}]},
        {"messages": {"role": ["user", "assistant"], "content": ["héllo", "hi"]}},
    ],
)
def test_conversations(tmp_path, write_table, kind, row):
    write_table(tmp_path / f"t.{kind}", [row])
    (record,) = read_all(tmp_path)
    assert record.text == CANONICAL and record.language == "conversation"
    assert json.loads(record.text)["messages"] == MESSAGES


def test_a_table_with_text_and_messages(tmp_path, write_table):
    write_table(tmp_path / "t.jsonl", [{"text": "words", "messages": MESSAGES}])
    assert read_all(tmp_path)[0].text == CANONICAL
    assert read_all(tmp_path, InputOptions(text_column="messages"))[0].text == CANONICAL
    assert read_all(tmp_path, InputOptions(text_column="text"))[0].text == "words"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        [1],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"content": "x"}],
        {"role": ["user"], "content": []},
        {"role": "user", "content": "x"},
    ],
)
def test_damaged_conversations(tmp_path, write_files, messages):
    assert conversations.canonical_text({"messages": messages}) is None
    write_files(tmp_path, {"t.jsonl": json.dumps({"messages": messages})})
    assert reasons(read_all(tmp_path)) == ["damaged"]


def test_personal_data_after_a_line_break_of_a_conversation(tmp_path, write_files):
    """In JSON a line break is an escape, which must not become a part of the address."""
    content = "Write to:\njane.roe@company.com at\n52.12.33.4"
    rows = (
        {"messages": [{"role": "user", "content": content}]},
        {"prompt": content, "completion": "x"},
        {"content": content, "language": "conversation"},
    )
    for number, row in enumerate(rows):
        write_files(tmp_path, {f"{number}.jsonl": json.dumps(row)})
    stage = StageFolder(epath.Path(tmp_path), "documents", "key")
    options = InputOptions(part_bytes=10**6)
    (part,) = parts_of(str(tmp_path), "in", options)
    WriteDocuments(stage, Policy(pii=("email", "ip_address")), options)(part)
    conversation, completion, text = [row["text"] for row in read_rows(stage.output(0))]
    assert stage.counts([0])[0]["redacted"] == {"email": 3, "ip_address": 3}
    contents = (
        json.loads(conversation)["messages"][0]["content"],
        json.loads(completion)["prompt"],
        text,
    )
    assert len(set(contents)) == 1
    lines = contents[0].split("\n")
    assert lines[0] == "Write to:" and lines[1].endswith("@example.com at") and len(lines) == 3
