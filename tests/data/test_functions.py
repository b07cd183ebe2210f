"""Documented functions as examples: their parts, their order, and the weights of the loss."""

import dataclasses
import types

import numpy as np
import pytest
import toy

from codellama_jax.checked import FieldError
from codellama_jax.config import DataConfig, InfillingConfig, MixtureConfig
from codellama_jax.data import pipeline
from codellama_jax.data.functions import Function, example_ids, functions
from codellama_jax.data.prepared import Prepared
from codellama_jax.errors import UserError
from codellama_jax.runs.corpus import held_out

CODE = '''
@decorated
def area(w, h):
    """Returns the area.

    In square metres.
    """

    size = w * h  # a comment
    return size

class Box:
    async def open(
        self,
    ) -> None:
        "Opens it."
        await self.lid()

    def text(self):
        """Returns a text."""
        return """one
    two"""

def plain(x):
    return x

def empty():
    """Only a docstring."""

def joined(): "On one line."; return 1

def quoted():
    """Has \\\\n, no line end."""
    return 1
'''
AREA = Function(
    "def area(w, h):\n",
    "Returns the area.\n\nIn square metres.",
    "    size = w * h  # a comment\n    return size\n",
)
OPEN = Function("async def open(\n    self,\n) -> None:\n", "Opens it.", "    await self.lid()\n")


def test_documented_functions_are_separated():
    """The others: dedenting would change `text`, and `quoted` would need an escape."""
    assert list(functions(CODE)) == [AREA, OPEN]


def test_functions_nested_deeper_than_the_stack_are_separated():
    """The parser accepts these; a recursive comparison of their syntax trees does not."""
    branches = "".join(f"    elif x == {i}:\n        return {i}\n" for i in range(400))
    total = " + ".join(f'"{i}"' for i in range(1500))
    for body in (f"    if x < 0:\n        pass\n{branches}", f"    return {total}\n"):
        code = f'def f(x):\n    """Doc."""\n{body}'
        assert list(functions(code)) == [Function("def f(x):\n", "Doc.", body)]


@pytest.mark.parametrize("text", ["def f(:\n", "print 1\n", "\0", "(" * 10_000, ""])
def test_text_that_is_not_python_has_no_functions(text):
    assert not list(functions(text))


DOCSTRING = '"""Returns the area.\n\nIn square metres."""\n'


@pytest.mark.parametrize(
    ("examples", "given", "learned"),
    [
        ("docstring_to_code", DOCSTRING, AREA.signature + AREA.body),
        ("code_to_docstring", AREA.signature + AREA.body, DOCSTRING),
    ],
)
def test_loss_is_on_the_second_part_and_eos(characters, examples, given, learned):
    t = characters
    given_ids = [t.bos_id, *t.encode(given)]
    expected = [*given_ids, *t.encode(learned, leading_space=False), t.eos_id]
    assert example_ids(t, AREA, examples) == (expected, len(given_ids))
    data = DataConfig(256, 1, MixtureConfig(python=1.0), examples=examples)
    source = {"python": [{"id": b"a.py", "text": CODE.encode()}]}
    batch = next(pipeline.DirectBatches(source, data, t, 0, [0]))
    rows = batch["segment_ids"][0] == 1
    tokens, targets = batch["tokens"][0][rows].tolist(), batch["targets"][0][rows].tolist()
    assert [tokens[0], *targets] == expected
    weights = batch["weights"][0][rows]
    assert t.decode(np.array(targets)[weights == 1].tolist(), leading_space=False) == learned
    assert weights.tolist() == [0.0] * (len(given_ids) - 1) + [1.0] * (len(learned) + 1)


def test_an_example_longer_than_a_sequence_is_left_out(characters):
    data = DataConfig(100, 1, MixtureConfig(python=1.0), examples="docstring_to_code")
    source = {"python": [{"id": b"a.py", "text": CODE.encode()}]}
    batch = next(pipeline.DirectBatches(source, data, characters, 0, [0]))
    text = characters.decode(batch["targets"][0].tolist(), leading_space=False)
    assert "Opens it." in text and "area" not in text


def test_documents_without_functions_are_one_line(characters):
    stage = toy.stage()
    data = dataclasses.replace(stage.data, examples="docstring_to_code")
    source = Prepared([], [{"id": b"a.md", "text": b"# A heading"}], {}, "hash")
    corpus = types.SimpleNamespace(tokenizer=characters, sources=lambda _: {"code": source})
    with pytest.raises(UserError, match="none of the held-out documents is a Python file") as error:
        held_out(corpus, dataclasses.replace(stage, data=data))
    assert "\n" not in str(error.value)


def test_held_out_documents_without_a_target_are_one_line(characters, monkeypatch):
    """An empty file is EOS alone where the vocabulary has no BOS."""
    monkeypatch.setattr(characters, "adds_bos", False)
    source = Prepared([], [{"id": b"a.py", "text": b""}], {}, "hash")
    corpus = types.SimpleNamespace(tokenizer=characters, sources=lambda _: {"code": source})
    with pytest.raises(UserError, match="none of the held-out documents is other than empty"):
        held_out(corpus, toy.stage())


def test_infilling_of_functions_is_refused():
    with pytest.raises(FieldError, match=r"infilling\.rate is 0\.5: it must be 0 with examples"):
        DataConfig(64, 1, MixtureConfig(), InfillingConfig(rate=0.5), examples="docstring_to_code")
