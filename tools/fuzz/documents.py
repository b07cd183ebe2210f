"""Inputs of training and infilling: corpora, tokenizer files, files with <FILL_ME>."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import published
import pyarrow as pa
import pyarrow.parquet as pq

from codellama_jax.config import SOURCES, CorpusConfig, DataConfig, MixtureConfig
from codellama_jax.data import builders, pipeline
from codellama_jax.generation.source import read_source
from codellama_jax.tokenizers import files
from codellama_jax.tokenizers.sentencepiece_file import ModelProto
from tools.fuzz import mutations

MARK = "<FILL_ME>"
LINES = ["import os", "def f(x):", "    return x + 1", "class A:", "# é 日本", "x = 'a ▁ b'"]
LINES += ["", "\t", "x = [" + "1, " * 400 + "]", "# automatically generated", "\u2028", "\x0c"]
LINES += ["😀", MARK]
PIECES = ["", "▁", "<s>", "<unk>", "<0x00>", "▁<PRE>", "a" * 5000, "日", "\0"]
WHITESPACE = ["add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"]
ENDINGS = [".py", ".py", ".md", ".jsonl", ".parquet", ".ipynb", ".gz", ".json", ""]
TABLES = (".jsonl", ".parquet")


def text(rng: Random) -> str:
    """Returns the text of a source file."""
    lines = []
    for _ in range(rng.randrange(60)):
        lines.append(rng.choice(LINES) + str(rng.choice(["", rng.randrange(99)])))
    return "\n".join(lines)


def corpora(rng: Random, folder: Path) -> Callable[[], object]:
    """A folder of documents and tables, which is prepared and packed into two batches."""
    root = folder / rng.choice(["corpus", "é", "a b", "[x]"])
    root.mkdir()
    for number in range(rng.choice([0, 1, 2, 5, 9])):
        name = f"{number}{rng.choice(ENDINGS)}"
        # Also names that a file system allows and that programs do not expect.
        if rng.random() < 0.3:
            name = rng.choice(mutations.NAMES)
        path = root / rng.choice(["", "", "sub", ".hidden"]) / name
        path.parent.mkdir(exist_ok=True)
        # One of five tables has text instead of a table's bytes.
        is_table = path.suffix in TABLES and rng.random() < 0.8
        data = table(rng, path.suffix) if is_table else text(rng).encode(errors="surrogatepass")
        # A link or pipe may be there already, and writing to it could wait.
        if not os.path.lexists(path):
            path.write_bytes(mutations.damaged(rng, data) if rng.random() < 0.3 else data)
        if rng.random() < 0.1:
            mutations.replace_file(rng, path)
    # Sometimes no folder at all: a path that does not exist, or a single file.
    place = str(root) if rng.random() < 0.9 else rng.choice([*mutations.TEXTS, str(root / "0.py")])
    source = rng.choice(SOURCES)
    block_chars, max_files = rng.choice([0, 1, 50, 250]), rng.choice([0, 0, 1, 3])
    fraction = rng.choice([0.0, 0.05, 0.5, 0.999])
    cache = folder / ".cache"  # hidden: the corpus may be a folder that contains it

    def call() -> None:
        fields: dict[str, Any] = {source: place}
        corpus = CorpusConfig(**fields, max_files=max_files, validation_fraction=fraction)
        prepared = builders.prepare(corpus, source, block_chars, cache)
        batches(prepared.train, source)
        # The second call finds the documents of the first one.
        again = builders.prepare(corpus, source, block_chars, cache, unexpected)
        assert again.fingerprint == prepared.fingerprint

    return call


def unexpected(line: str) -> None:
    """Raises an exception for a line about a corpus that is prepared although it is cached."""
    if "reading" in line or "preparing" in line:
        raise AssertionError(line)


def table(rng: Random, ending: str) -> bytes:
    """Returns a table with a few documents, or with none."""
    column = rng.choice(["content", "text", "text", "title", "messages"])
    values: list[object] = [text(rng), "", None, 7, [{"role": "user", "content": "x"}]]
    # The text itself is listed three times more, so that most tables hold a document.
    rows = [{column: rng.choice(values[:1] * 3 + values)} for _ in range(rng.randrange(5))]
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    # A column of a table has one type.
    kind = rng.choice([str, bytes, int])
    converted = pa.table({column: [kind(number) for number in range(len(rows))]})
    file = io.BytesIO()
    pq.write_table(converted, file)
    return file.getvalue()


def batches(documents: Sequence, source: str) -> None:
    """Packs and reads two batches of documents."""
    shares: dict[str, Any] = {source: 1.0}
    data = DataConfig(32, 2, MixtureConfig(**shares))
    with pipeline.Batches({source: documents}, data, published.trained(), 0, [0, 1]) as stream:
        for _ in range(2):
            stream.document_names(next(stream))


@functools.cache
def proto_bytes() -> bytes:
    """Returns a small tokenizer.model."""
    return published.trained().model


def tokenizer_files(rng: Random, folder: Path) -> Callable[[], object]:
    """A tokenizer.model with other contents or damage, with which text is encoded and decoded."""
    file = folder / "tokenizer.model"
    # Most inputs stay valid protobuf: random bytes would only test the parser, never the options.
    data = changed_model(rng) if rng.random() < 0.6 else mutations.damaged(rng, proto_bytes())
    file.write_bytes(data)
    if rng.random() < 0.08:
        mutations.replace_file(rng, file)
    sample = text(rng) + rng.choice(mutations.TEXTS)
    odd = [folder, folder / "none", *mutations.TEXTS]
    name = file if rng.random() < 0.9 else rng.choice(odd)

    def call() -> None:
        tokenizer = files.load(name)
        ids = tokenizer.encode(sample)
        tokenizer.decode(ids)
        tokenizer.decode(tokenizer.encode(sample, leading_space=False), leading_space=False)
        # Ids outside of the vocabulary, as a faulty model or caller gives them.
        tokenizer.decode([-1, 0, 1, tokenizer.vocab_size, 10**12, *tokenizer.text_ids[-5:]])

    return call


def changed_model(rng: Random) -> bytes:
    """Returns a tokenizer.model with other pieces or options."""
    proto = ModelProto.FromString(proto_bytes())
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(8)
        # An earlier change may have deleted all pieces.
        if not proto.pieces:
            proto.pieces.add()
        piece = proto.pieces[rng.randrange(len(proto.pieces))]
        if kind == 0:
            piece.type = rng.choice([1, 2, 3, 4, 5, 6])
        elif kind == 1:
            piece.piece = rng.choice(PIECES)
        elif kind == 2:
            piece.score = rng.choice([float("nan"), float("inf"), -1e38, 0.0])
        elif kind == 3:
            del proto.pieces[rng.choice([0, 3, 300, len(proto.pieces) - 1]) :]
        elif kind == 4:
            spec = proto.normalizer_spec
            setattr(spec, rng.choice(WHITESPACE), rng.random() < 0.5)
            if rng.random() < 0.3:
                spec.precompiled_charsmap = rng.randbytes(rng.choice([1, 4, 50]))
        elif kind == 5:
            name = rng.choice(["unk_id", "bos_id", "eos_id", "pad_id", "model_type", "vocab_size"])
            allowed = [-1, 0, 1, 2, 3, 499, 500, 2**31 - 1]
            if name == "model_type":
                allowed = [1, 2, 3, 4]
            setattr(proto.trainer_spec, name, rng.choice(allowed))
        elif kind == 6:
            more = ["▁<PRE>", "▁<EOT>", "x", "a", "<s>"]
            proto.pieces.add(piece=rng.choice(more), type=rng.choice([1, 3, 4]))
        else:
            proto.trainer_spec.byte_fallback = not proto.trainer_spec.byte_fallback
            proto.trainer_spec.treat_whitespace_as_suffix = rng.random() < 0.2
    return proto.SerializeToString()


def prompts(rng: Random, folder: Path) -> Callable[[], object]:
    """A file to infill, which is read and split as `infill` does before it loads a run."""
    file = folder / rng.choice(mutations.NAMES)
    mark = rng.choice(["", MARK, MARK, MARK, MARK, MARK * 2])
    data = mark.join(text(rng).replace(MARK, "x") for _ in range(2)).encode()
    file.write_bytes(mutations.damaged(rng, data) if rng.random() < 0.5 else data)
    if rng.random() < 0.2:
        mutations.replace_file(rng, file)
    name = str(file) if rng.random() < 0.8 else rng.choice(mutations.TEXTS)
    name = str(file) if name == "-" else name  # "-" would read stdin
    tokenizer = published.trained()

    def call() -> None:
        source = read_source(name)
        for part in source.split():
            tokenizer.encode(source.for_model(part))
            # The text must be encodable again, since `infill` writes the file.
            source.from_model(part).encode()

    return call
