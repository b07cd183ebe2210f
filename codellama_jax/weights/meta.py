"""Meta's layout: params.json and one consolidated.NN.pth per model-parallel rank.

Column-parallel weights are split along their outputs, row-parallel ones and the embedding along
their inputs, and norms are in every file. Rows of wq and wk are in the order of interleaved RoPE
pairs (0, 1), (2, 3), ..., where ours pairs i with i + H/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from codellama_jax.errors import UserError, some
from codellama_jax.models.llama.params_json import model_config, params_of
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.console import warn
from codellama_jax.system.files import write_file, write_json
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import read_settings
from codellama_jax.tokenizers.sentencepiece import Tokenizer
from codellama_jax.tokenizers.transformers_files import with_sentinels
from codellama_jax.weights.folders import whole_folder
from codellama_jax.weights.inputs import file_names, unused_weights
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import (
    Index,
    Source,
    check_tensors,
    names,
    shapes,
    source_bytes,
)
from codellama_jax.weights.torch_file import Stored, read_pickled, write_pickled

NAMES = {
    "embedding": "tok_embeddings.weight",
    "attention_norm": "layers.{}.attention_norm.weight",
    "q": "layers.{}.attention.wq.weight",
    "k": "layers.{}.attention.wk.weight",
    "v": "layers.{}.attention.wv.weight",
    "o": "layers.{}.attention.wo.weight",
    "ffn_norm": "layers.{}.ffn_norm.weight",
    "gate": "layers.{}.feed_forward.w1.weight",
    "up": "layers.{}.feed_forward.w3.weight",
    "down": "layers.{}.feed_forward.w2.weight",
    "final_norm": "norm.weight",
    "head": "output.weight",
}
COMPUTED = "rope.freqs"  # in every published file, though params.json determines it
# The axis that the ranks split; norms have none.
SPLIT = {
    "embedding": 1,
    "o": 1,
    "down": 1,
    "q": 0,
    "k": 0,
    "v": 0,
    "gate": 0,
    "up": 0,
    "head": 0,
}
CONTEXT = 4096  # Llama 2's; params.json has no such field


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in the files."""
    return NAMES[name].format(layer)


def open_source(folder: epath.Path) -> Source:
    """Opens a folder as Meta publishes it, of any number of ranks.

    Raises UserError for what is missing, damaged or contradictory.
    """
    params = read_settings(folder / "params.json")
    ranks = [read_pickled(folder / name) for name in _rank_files(folder)]
    model = model_config(params, _head_rows(folder, ranks))
    known = {COMPUTED} | {file_name(*key) for key in names(model)}
    extra = {name for rank in ranks for name in rank} - known
    if extra:
        tensors = some(sorted(extra))
        raise UserError(f"{folder} holds tensors that this model has no place for: {tensors}")
    found = {}
    for name, layer in names(model):
        stored = file_name(name, layer)
        parts = [rank[stored] for rank in ranks if stored in rank]
        if len({(p.shape, p.dtype) for p in parts}) > 1:
            differ = "has another shape or dtype in another file"
            raise UserError(f"{folder}: {stored} {differ}: are they of one model?")
        if len(parts) == len(ranks):
            found[name, layer] = (_full_shape(name, parts), parts[0].dtype)
    dtypes = check_tensors(folder / "params.json", model, found, file_name)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        matrix = _merged(name, [rank[file_name(name, layer)] for rank in ranks], index)
        return half_split(matrix, model.head_dim) if name in ("q", "k") else matrix

    return Source(str(folder), model, CONTEXT, dtypes, read)


def _rank_files(folder: epath.Path) -> list[str]:
    """Returns the names of the ranks' files; warns of other files of weights."""
    present = file_names(folder)
    files = [n for n in present if n.startswith("consolidated.") and n.endswith(".pth")]
    unused = unused_weights(present, files, "config.json")
    if not files:
        others = f", only {some(unused)}" if unused else ""
        raise UserError(f"{folder} has no consolidated.NN.pth{others}: is the download complete?")
    if files != [f"consolidated.{rank:02}.pth" for rank in range(len(files))]:
        wanted = f"not all files from consolidated.00.pth to {files[-1]}"
        raise UserError(f"{folder} has {some(files)}, {wanted}: is the download complete?")
    if unused:
        warn(f"{folder}: weights are read from {some(files)}; not used: {', '.join(unused)}")
    return files


def _head_rows(folder: epath.Path, ranks: list[dict[str, Stored]]) -> int:
    """Returns the rows of the output head over all ranks. Raises UserError if no file has it."""
    heads = [rank[NAMES["head"]].shape for rank in ranks if NAMES["head"] in rank]
    rows = sum(shape[0] for shape in heads if len(shape) == 2)
    if not rows:
        raise UserError(f"{folder}: no file has {NAMES['head']}: is the download complete?")
    return rows


def _full_shape(name: str, parts: list[Stored]) -> tuple[int, ...]:
    sizes = list(parts[0].shape)
    axis = SPLIT.get(name)
    if axis is not None and axis < len(sizes):
        sizes[axis] *= len(parts)
    return tuple(sizes)


def _merged(name: str, parts: list[Stored], index: Index) -> np.ndarray:
    """Reads a part of a tensor from the ranks that hold it."""
    axis = SPLIT.get(name)
    if axis is None:
        return parts[0].read(index)
    size = parts[0].shape[axis]
    start, stop, _ = index[axis].indices(size * len(parts))
    pieces = []
    for rank, part in enumerate(parts):
        held = slice(max(0, start - rank * size), min(size, stop - rank * size))
        if held.start < held.stop:
            pieces.append(part.read((*index[:axis], held, *index[axis + 1 :])))
    return np.concatenate(pieces, axis)


def half_split(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders the rows of full heads from interleaved pairs to our halves."""
    columns = matrix.shape[1]
    return matrix.reshape(-1, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(matrix.shape)


def interleaved(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Reverses `half_split`."""
    columns = matrix.shape[1]
    return matrix.reshape(-1, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(matrix.shape)


def write(
    source: Source, tokenizer: Tokenizer, folder: epath.Path, ranks: int, integrity: bool = False
) -> None:
    """Writes params.json, tokenizer.model and a file per model-parallel rank.

    Args:
      source: the model.
      tokenizer: its tokenizer.
      folder: a folder that does not exist yet.
      ranks: the number of files.
      integrity: writes checksums of the files, too.

    Raises UserError for a model that this layout cannot represent.
    """
    c = source.model
    fix = "export it --to hf"
    if c.family != "llama" or c.tied_embeddings:
        kind = "ties its embeddings" if c.tied_embeddings else f"is of the family {c.family}"
        raise UserError(f"{source.name} {kind}, which Meta's layout cannot hold: {fix}")
    if c.rope_scaling != 1:
        scaled = f"scales its positions by {c.rope_scaling:g}"
        raise UserError(f"{source.name} {scaled}, which params.json has no field for: {fix}")
    if c.head_dim * c.n_heads != c.d_model:
        width = f"{c.n_heads} heads of width {c.head_dim}"
        raise UserError(f"{source.name} has {width}, and Meta's layout d_model / n_heads: {fix}")
    if ranks < 1:
        raise UserError(f"--ranks must be at least 1, got {ranks}")
    uneven = [file_name(name, 0) for name, axis in SPLIT.items() if shapes(c)[name][axis] % ranks]
    if c.n_kv_heads % ranks:
        uneven.insert(0, f"{c.n_kv_heads} key heads")
    if uneven:
        raise UserError(f"{some(uneven)} cannot be split evenly over {ranks} ranks: change --ranks")
    size = source_bytes(source) * ranks
    with (
        whole_folder(folder) as part,
        counted("exporting", size, unit="bytes", quiet=not is_first()) as advance,
    ):
        for rank in range(ranks):
            _write_rank(source, part / f"consolidated.{rank:02}.pth", rank, ranks, advance)
        write_json(part / "params.json", params_of(c))
        proto = with_sentinels(tokenizer, c.vocab_size)
        write_file(part / "tokenizer.model", proto.SerializeToString(deterministic=True))
        if integrity:
            write_checksums(part)


def _write_rank(
    source: Source, path: epath.Path, rank: int, ranks: int, advance: Callable[[int], None]
) -> None:
    tensors = []
    for name, layer in names(source.model):
        shape = list(shapes(source.model)[name])
        if name in SPLIT:
            shape[SPLIT[name]] //= ranks
        tensors.append((file_name(name, layer), source.dtypes[name].name, tuple(shape)))

    def matrices() -> Iterator[np.ndarray]:
        for name, layer in names(source.model):
            matrix = source.tensor(name, layer)
            advance(matrix.nbytes)
            if name in ("q", "k"):
                matrix = interleaved(matrix, source.model.head_dim)
            yield np.split(matrix, ranks, SPLIT[name])[rank] if name in SPLIT else matrix

    write_pickled(path, tensors, matrices())
