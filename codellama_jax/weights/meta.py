"""Meta's layout: params.json and one consolidated.NN.pth per model-parallel rank.

Column-parallel weights are split along their outputs, row-parallel weights and the embedding along
their inputs, and every file has all norms.

Meta's RoPE rotates the pairs (0, 1), (2, 3), ... of a head of width H, this project's (like that of
transformers) the pairs (i, i + H/2). So the rows of wq and wk are permuted between the two orders;
q times k is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from codellama_jax.errors import UserError, name_list
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.params_json import model_config, params_of
from codellama_jax.sharding.hosts import is_first
from codellama_jax.system.console import warn
from codellama_jax.system.files import write_file, write_json
from codellama_jax.system.progress import counted
from codellama_jax.system.settings import read_settings
from codellama_jax.tokenizers.base import Tokenizer
from codellama_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from codellama_jax.tokenizers.transformers_files import with_sentinels
from codellama_jax.weights.folders import complete_folder
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
from codellama_jax.weights.torch_file import Described, Stored, read_pickled, write_pickled

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
COMPUTED = "rope.freqs"  # in every published file; it follows from params.json
# The axis along which a tensor is split over the ranks. Norms are not split.
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
CONTEXT = 4096  # tokens, Llama 2's; params.json has no such field


def file_name(name: str, layer: int) -> str:
    """Returns the name of a tensor in Meta's files."""
    return NAMES[name].format(layer)


def open_source(folder: epath.Path) -> Source:
    """Opens a folder as Meta publishes it, with any number of ranks.

    Raises UserError for a missing or damaged file and for files that contradict each other.
    """
    params = read_settings(folder / "params.json")
    # Only headers: values are read part by part.
    ranks = [read_pickled(folder / name) for name in _rank_files(folder)]
    model = model_config(params, _head_rows(folder, ranks))
    known = {COMPUTED} | {file_name(*key) for key in names(model)}
    stored_names: set[str] = set()
    for rank in ranks:
        stored_names.update(rank)
    extra = stored_names - known
    if extra:
        tensors = name_list(sorted(extra))
        raise UserError(f"{folder} holds tensors that this model has no place for: {tensors}")
    headers = {}
    for name, layer in names(model):
        stored_name = file_name(name, layer)
        parts = [rank[stored_name] for rank in ranks if stored_name in rank]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            differ = "has another shape or dtype in another file"
            raise UserError(f"{folder}: {stored_name} {differ}: are they of one model?")
        # A tensor that a rank lacks counts as missing, which `check_tensors` reports.
        if len(parts) == len(ranks):
            headers[name, layer] = (_full_shape(name, parts), parts[0].dtype)
    dtypes = check_tensors(folder / "params.json", model, headers, file_name)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        matrix = _merged(name, [rank[file_name(name, layer)] for rank in ranks], index)
        # v has no RoPE and keeps its order.
        return half_split(matrix, model.head_dim) if name in ("q", "k") else matrix

    return Source(str(folder), model, CONTEXT, dtypes, read)


def _rank_files(folder: epath.Path) -> list[str]:
    """Returns the names of the files of all ranks, in order. Warns of other weight files."""
    present = file_names(folder)
    files = [n for n in present if n.startswith("consolidated.") and n.endswith(".pth")]
    unused = unused_weights(present, files, "config.json")
    if not files:
        others = f", only {name_list(unused)}" if unused else ""
        raise UserError(f"{folder} has no consolidated.NN.pth{others}: is the download complete?")
    # A rank that is missing would shift the parts of the ranks after it.
    if files != [f"consolidated.{rank:02}.pth" for rank in range(len(files))]:
        missing = f"not all files from consolidated.00.pth to {files[-1]}"
        raise UserError(f"{folder} has {name_list(files)}, {missing}: is the download complete?")
    if unused:
        warn(f"{folder}: weights are read from {name_list(files)}; not used: {', '.join(unused)}")
    return files


def _head_rows(folder: epath.Path, ranks: list[dict[str, Stored]]) -> int:
    """Returns the vocabulary size: the rows of the output head of all ranks.

    params.json may have -1 instead of it. Raises UserError if no file has an output head.
    """
    # The head is split along the vocabulary, the embedding along the width.
    heads = [rank[NAMES["head"]].shape for rank in ranks if NAMES["head"] in rank]
    rows = sum(shape[0] for shape in heads if len(shape) == 2)
    if not rows:
        raise UserError(f"{folder}: no file has {NAMES['head']}: is the download complete?")
    return rows


def _full_shape(name: str, parts: list[Stored]) -> tuple[int, ...]:
    """Returns the shape of a tensor that is split over ranks."""
    sizes = list(parts[0].shape)
    axis = SPLIT.get(name)
    # A damaged file may hold a tensor with fewer axes; `check_tensors` then reports its shape.
    if axis is not None and axis < len(sizes):
        sizes[axis] *= len(parts)
    return tuple(sizes)


def _merged(name: str, parts: list[Stored], index: Index) -> np.ndarray:
    """Returns a part of a tensor, reading only from the ranks that hold some of it."""
    axis = SPLIT.get(name)
    if axis is None:
        return parts[0].read(index)
    size = parts[0].shape[axis]
    # The part of each rank in its own rows or columns: empty if the index does not reach it.
    start, stop, _ = index[axis].indices(size * len(parts))
    pieces = []
    for rank, part in enumerate(parts):
        first, last = max(0, start - rank * size), min(size, stop - rank * size)
        if first < last:
            pieces.append(part.read((*index[:axis], slice(first, last), *index[axis + 1 :])))
    return np.concatenate(pieces, axis)


def half_split(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns wq or wk, [heads * head_dim, inputs], with rows in this project's RoPE order.

    Rows 2i and 2i + 1 of a head, a pair in Meta's order, move to i and i + head_dim / 2.
    """
    columns = matrix.shape[1]
    return matrix.reshape(-1, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(matrix.shape)


def interleaved(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns wq or wk with rows in Meta's RoPE order; the inverse of `half_split`."""
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
      integrity: whether to write checksums of the files as well.

    Raises UserError for a model that this layout cannot represent.
    """
    model = _llama_config(source)
    if not isinstance(tokenizer, SentencePieceTokenizer):
        kind = "has a byte-level tokenizer, which Meta's layout cannot hold"
        raise UserError(f"{source.name} {kind}: export it --to hf")
    _check_ranks(model, ranks)
    # Every rank reads the full tensors, so that only one of them is in memory.
    size = source_bytes(source) * ranks
    with (
        complete_folder(folder) as part,
        counted("exporting", size, unit="bytes", quiet=not is_first()) as advance,
    ):
        for rank in range(ranks):
            _write_rank(source, part / f"consolidated.{rank:02}.pth", rank, ranks, advance)
        write_json(part / "params.json", params_of(model))
        proto = with_sentinels(tokenizer, model.vocab_size)
        write_file(part / "tokenizer.model", proto.SerializeToString(deterministic=True))
        if integrity:
            write_checksums(part)


def _llama_config(source: Source) -> LlamaConfig:
    """Returns the model's config. Raises UserError if Meta's layout cannot represent it."""
    model = source.model
    fix = "export it --to hf"
    if not isinstance(model, LlamaConfig):
        kind = f"is of the family {model.family}"
        raise UserError(f"{source.name} {kind}, which Meta's layout cannot hold: {fix}")
    if model.tied_embeddings:
        raise UserError(
            f"{source.name} ties its embeddings, which Meta's layout cannot hold: {fix}"
        )
    if model.rope_scaling != 1:
        scaled = f"scales its positions by {model.rope_scaling:g} ({model.rope_type})"
        raise UserError(f"{source.name} {scaled}, which params.json has no field for: {fix}")
    if model.attention_bias != "none":
        raise UserError(f"{source.name} has biases, which Meta's layout cannot hold: {fix}")
    if model.head_dim * model.n_heads != model.d_model:
        width = f"{model.n_heads} heads of width {model.head_dim}"
        raise UserError(f"{source.name} has {width}, and Meta's layout d_model / n_heads: {fix}")
    return model


def _check_ranks(model: LlamaConfig, ranks: int) -> None:
    """Raises UserError if a tensor or the key heads cannot be split evenly over the ranks."""
    if ranks < 1:
        raise UserError(f"--ranks must be at least 1, got {ranks}")
    # Heads are not divided between ranks, even if their rows would allow it.
    uneven = [f"{model.n_kv_heads} key heads"] if model.n_kv_heads % ranks else []
    for name, axis in SPLIT.items():
        if shapes(model)[name][axis] % ranks:
            uneven.append(file_name(name, 0))
    if uneven:
        raise UserError(
            f"{name_list(uneven)} cannot be split evenly over {ranks} ranks: change --ranks"
        )


def _write_rank(
    source: Source, path: epath.Path, rank: int, ranks: int, advance: Callable[[int], None]
) -> None:
    """Writes the file of one rank of `ranks`. `advance` adds bytes to the progress bar."""
    # The pickle with all names and shapes comes before the values in the file.
    tensors: list[Described] = []
    for name, layer in names(source.model):
        shape = list(shapes(source.model)[name])
        if name in SPLIT:
            shape[SPLIT[name]] //= ranks
        tensors.append(((file_name(name, layer),), source.dtypes[name].name, tuple(shape)))

    def matrices() -> Iterator[np.ndarray]:
        for name, layer in names(source.model):
            matrix = source.tensor(name, layer)
            advance(matrix.nbytes)
            if name in ("q", "k"):
                # Before the split, which is between heads.
                matrix = interleaved(matrix, source.model.head_dim)
            yield np.split(matrix, ranks, SPLIT[name])[rank] if name in SPLIT else matrix

    write_pickled(path, tensors, matrices())
