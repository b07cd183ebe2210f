"""Tokenizers and a folder of files for the tests of the data package."""

import argparse
import ast
import dataclasses
import inspect

import pytest

from codellama_jax.config import CorpusConfig
from codellama_jax.tokenizers import sentencepiece as tokenizers


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    texts = [inspect.getsource(module) for module in (argparse, ast, dataclasses)]
    return tokenizers.train(texts, 500, tmp_path_factory.mktemp("tokenizer"))


class Characters:
    """A tokenizer with one id per character, so that ids show where a text was split."""

    bos_id, eos_id, pre_id, suf_id, mid_id, eot_id = range(1, 7)
    adds_bos = True

    def encode(self, text, *, leading_space=True):
        return [ord(c) + 10 for c in (" " + text if leading_space and text else text)]

    def decode(self, ids, *, leading_space=True):
        text = "".join(chr(i - 10) for i in ids if i >= 10)
        return text.removeprefix(" ") if leading_space else text


@pytest.fixture(scope="session")
def characters():
    return Characters()


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        (folder / f"f{i}.py").write_text(
            "".join(f"def f{j}():\n    return {i * j}\n\n\n" for j in range(i + 3))
        )
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return CorpusConfig(code=str(folder), validation_fraction=0.2)
