"""The layout of CodeGeeX: one file of torch.save, nested dicts of tensors, without a config.

The model follows from the shapes: a published size with as many layers of that width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from etils import epath

from codellama_jax.errors import UserError, name_list
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.published import CODEGEEX_NAMES
from codellama_jax.models.gpt.sizes import CODEGEEX
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.progress import counted
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.transformers_files import write_tokenizer
from codellama_jax.weights.folders import complete_folder
from codellama_jax.weights.inputs import file_names
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import (
    Index,
    Source,
    check_tensors,
    names,
    shapes,
    source_bytes,
)
from codellama_jax.weights.torch_file import Described, Stored, read_pickled, write_pickled

ROOT = "language_model."  # the published names start after this
FILE = "codegeex.pt"
ENTRIES = 50_400  # of the published vocabulary; the other rows of the embedding are padding


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in CodeGeeX's file."""
    return CODEGEEX_NAMES[name].format(layer)


def weight_files(folder: epath.Path) -> list[str]:
    """Returns the names of files in a folder that may hold a CodeGeeX."""
    return [name for name in file_names(folder) if name.endswith(".pt")]


def open_source(folder: epath.Path) -> Source:
    """Opens a folder with CodeGeeX's file, *.pt.

    Raises UserError for a missing or damaged file, for several, and for another model.
    """
    files = weight_files(folder)
    if len(files) != 1:
        shown = name_list(files) if files else "none"
        raise UserError(f"{folder} must hold one file *.pt of CodeGeeX, and has {shown}")
    path = folder / files[0]
    stored = {}
    for name, tensor in read_pickled(path).items():
        # Names count from ROOT, however many dicts of the file it is in.
        stored[name.partition(ROOT)[2] or name] = tensor
    model = _model(path, stored)
    known = {file_name(*key) for key in names(model)}
    extra = sorted(set(stored) - known)
    # Dropping a tensor silently would give another model with plausible outputs.
    if extra:
        tensors = name_list(extra)
        raise UserError(f"{path} holds tensors that CodeGeeX has no place for: {tensors}")
    headers = {}
    for key in names(model):
        if file_name(*key) in stored:
            tensor = stored[file_name(*key)]
            headers[key] = (tensor.shape, tensor.dtype)
    dtypes = check_tensors(path, model, headers, file_name)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        return stored[file_name(name, layer)].read(index)

    return Source(str(folder), model, model.n_positions, dtypes, read, entries=ENTRIES)


def _model(path: epath.Path, stored: dict[str, Stored]) -> GPTConfig:
    """Returns the published size that the tensors are of. Raises UserError if there is none."""
    table = file_name("embedding", 0)
    if table not in stored or len(stored[table].shape) != 2:
        raise UserError(f"{path} has no {table}: is it CodeGeeX's file, and complete?")
    # The file has no number of heads, so the size must be known. A query bias per layer is counted.
    layers = 0
    while file_name("q_bias", layers) in stored:
        layers += 1
    return _published_size(str(path), layers, stored[table].shape[1])


def _published_size(name: str, layers: int, width: int) -> GPTConfig:
    """Returns the published model of that many layers below the top query layer.

    Raises UserError naming what has them, `name`, if there is none.
    """
    # The published sizes differ in layers or width.
    for model in CODEGEEX.values():
        if (model.n_layers, model.d_model) == (layers, width):
            return model
    sizes = [f"{model.n_layers} x {model.d_model}" for model in CODEGEEX.values()]
    problem = f"{name} has {layers} layers of width {width} below the top query layer"
    raise UserError(f"{problem}, which no published CodeGeeX has: {', '.join(sizes)}")


def write(
    source: Source, tokenizer: Tokenizer, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes CodeGeeX's file, as its own code loads it, and the tokenizer.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      folder: a folder that does not exist yet.
      integrity: whether to write checksums of the files as well.

    Raises UserError for a model that is no CodeGeeX.
    """
    source = _padded(source)
    tensors: list[Described] = []
    for name, layer in names(source.model):
        shape = shapes(source.model)[name]
        tensors.append((_keys(name, layer), source.dtypes[name].name, shape))
    size = source_bytes(source)
    with (
        complete_folder(folder) as part,
        counted("exporting", size, unit="bytes", quiet=not is_first()) as advance,
    ):

        def matrices() -> Iterator[np.ndarray]:
            for name, layer in names(source.model):
                matrix = source.tensor(name, layer)
                advance(matrix.nbytes)
                yield matrix

        write_pickled(part / FILE, tensors, matrices())
        write_tokenizer(tokenizer, source.model.vocab_size, source.context, part)
        if integrity:
            write_checksums(part)


def _keys(name: str, layer: int) -> tuple[str, ...]:
    """Returns the keys that lead to a tensor in the nested dicts of the file."""
    part, _, rest = file_name(name, layer).partition(".")
    # The released code looks up the tables by module, and the tensors of layers by dotted name.
    inner = (rest,) if part == "transformer" else tuple(rest.split("."))
    return ("module", ROOT.rstrip("."), part, *inner)


def _padded(source: Source) -> Source:
    """Returns the model with the rows of the published embedding.

    New rows are the mean of the others: their logit is the average one. Raises UserError for a
    model that is no CodeGeeX.
    """
    model = source.model
    if not isinstance(model, GPTConfig) or not model.top_query:
        kind = f"is of the family {model.family}, without a top query layer"
        raise UserError(f"{source.name} {kind}: it is no CodeGeeX; export it --to hf")
    published = _published_size(source.name, model.n_layers, model.d_model)
    # The published size with this vocabulary: every other field must be equal.
    described = replace(published, vocab_size=model.vocab_size)
    for field in ("n_heads", "n_kv_heads", "d_ff", "n_positions", "activation", "norm_eps"):
        mine, theirs = getattr(model, field), getattr(described, field)
        if mine != theirs:
            needed = f"a CodeGeeX of this width has {theirs}"
            raise UserError(f"{source.name} has {field} {mine}: {needed}, so it has no such file")
    rows = published.vocab_size
    if model.vocab_size > rows:
        raise UserError(
            f"{source.name} has {model.vocab_size:,} vocabulary entries: CodeGeeX's file has"
            f" {rows:,} rows"
        )

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        if name != "embedding":
            return source.read(name, layer, index)
        # The mean is over all rows, so that the table is read in full whatever part is needed.
        table_VD = source.tensor(name)
        # In float32, because the sum of 50,000 rows would lose most of its digits in 16 bits.
        mean_D = table_VD.astype(np.float32).mean(0).astype(table_VD.dtype)
        padding_VD = np.broadcast_to(mean_D, (rows - len(table_VD), len(mean_D)))
        return np.concatenate([table_VD, padding_VD])[index]

    return replace(source, model=replace(model, vocab_size=rows), read=read)
