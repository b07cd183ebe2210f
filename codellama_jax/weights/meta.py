"""Meta's layout: params.json and one consolidated.NN.pth for each model-parallel rank, read and written without torch.

Column-parallel weights are cut along their outputs, row-parallel ones and the embedding along their inputs, norms are whole in
every file. Rows of wq and wk stand in the order of interleaved RoPE pairs (0, 1), (2, 3), ..., where ours pairs i with i + H/2.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.config import ModelConfig
from codellama_jax.errors import UserError
from codellama_jax.sizes import ffn_width
from codellama_jax.tokenizer import Tokenizer
from codellama_jax.weights.layout import Index, Source, check_tensors, names, shapes, some, source_bytes
from codellama_jax.weights.settings import check_heads, describing, number, read_json
from codellama_jax.weights.store import progress, whole_folder
from codellama_jax.weights.tokenizer_files import with_sentinels

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
COMPUTED = "rope.freqs"  # in every published file; params.json says it already
CUT = {"embedding": 1, "o": 1, "down": 1, "q": 0, "k": 0, "v": 0, "gate": 0, "up": 0, "head": 0}  # the axis that the ranks share out
STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
CONTEXT = 4096  # Llama 2's; params.json does not say


def shown(name: str, layer: int) -> str:
    return NAMES[name].format(layer)


@dataclass(frozen=True)
class Stored:
    """A row-major tensor inside a file."""

    file: epath.Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self, index: Index) -> np.ndarray:
        """Reads whole rows, and returns the part that is asked for."""
        dtype, width = jnp.dtype(self.dtype), math.prod(self.shape[1:])
        start, stop, _ = index[0].indices(self.shape[0])
        with self.file.open("rb") as file:
            file.seek(self.offset + start * width * dtype.itemsize)
            data = file.read((stop - start) * width * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(stop - start, *self.shape[1:])[:, *index[1:]]


class SafeUnpickler(pickle.Unpickler):
    """Knows the five names that a file of tensors is made of, and calls nothing else."""

    def __init__(self, file: Any, path: epath.Path, offsets: dict[str, tuple[int, int]]):
        super().__init__(file)
        self.path, self.offsets = path, offsets

    def find_class(self, module: str, name: str) -> Any:
        known = {("torch", storage): dtype for storage, dtype in STORAGES.items()}
        known |= {("collections", "OrderedDict"): collections.OrderedDict, ("torch._utils", "_rebuild_tensor_v2"): self.tensor}
        if (module, name) not in known:
            raise UserError(f"{self.path} asks for {module}.{name}, which is no part of a file of weights: it was not run")
        return known[module, name]

    def persistent_load(self, pid: tuple) -> tuple[str, str, int]:
        _, dtype, key, _, size = pid
        return dtype, key, size

    def tensor(self, storage: tuple[str, str, int], start: int, shape: tuple, stride: tuple, *_: Any) -> Stored:
        dtype, key, _ = storage
        offset, size = self.offsets.get(key, (0, 0))
        itemsize = jnp.dtype(dtype).itemsize
        inner = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        if list(stride) != inner or (start + math.prod(shape)) * itemsize > size:
            raise UserError(f"{self.path} is damaged, or holds a tensor that is not row-major: write it again with torch.save")
        return Stored(self.path, offset + start * itemsize, dtype, tuple(shape))


def read_pickled(path: epath.Path) -> dict[str, Stored]:
    """Returns the tensors of a file that torch.save wrote; nothing in it is executed. Raises UserError for any other file."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            offsets = {name[5:]: _data(file, entry) for name, entry in entries.items() if name.startswith("data/")}
            with archive.open(entries["data.pkl"]) as pickled:
                found = SafeUnpickler(pickled, path, offsets).load()
    except UserError:
        raise
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is not a whole file of torch.save: {error}; download it again") from None
    except Exception as error:  # what a damaged pickle raises is open
        raise UserError(f"{path} cannot be unpickled: {type(error).__name__}: {error}; download it again") from None
    if not isinstance(found, dict) or not all(isinstance(value, Stored) for value in found.values()):
        raise UserError(f"{path} holds something else than tensors by name: give Meta's consolidated.NN.pth")
    return dict(found)


def _data(file: Any, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Returns where an entry's bytes begin, and how many there are."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{entry.filename} is compressed")
    file.seek(entry.header_offset + 26)
    name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    return entry.header_offset + 30 + name + extra, entry.file_size


def open_source(folder: epath.Path) -> Source:
    """Opens a folder as Meta publishes it, of any number of ranks. Raises UserError for what is missing, damaged or contradictory."""
    params = read_json(folder / "params.json")
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files or [f.name for f in files] != [f"consolidated.{rank:02}.pth" for rank in range(len(files))]:
        raise UserError(f"{folder} holds {some([f.name for f in files]) or 'no consolidated.NN.pth'}: is the download complete?")
    ranks = [read_pickled(file) for file in files]
    model = model_config(params, ranks, str(folder))
    found, extra = {}, {name for rank in ranks for name in rank} - {shown(*key) for key in names(model)} - {COMPUTED}
    if extra:
        raise UserError(f"{folder} holds tensors that this model has no place for: {some(sorted(extra))}")
    for name, layer in names(model):
        parts = [rank[shown(name, layer)] for rank in ranks if shown(name, layer) in rank]
        if len({(p.shape, p.dtype) for p in parts}) > 1:
            raise UserError(f"{folder}: {shown(name, layer)} has another shape or dtype in another file: are they of one model?")
        if len(parts) == len(ranks):
            found[name, layer] = (_whole(name, parts), parts[0].dtype)
    dtypes = check_tensors(str(folder), model, found, shown)

    def read(name: str, layer: int, index: Index) -> np.ndarray:
        matrix = _merged(name, [rank[shown(name, layer)] for rank in ranks], index)
        return half_split(matrix, model.head_dim) if name in ("q", "k") else matrix

    return Source(str(folder), model, CONTEXT, dtypes, read)


def _whole(name: str, parts: list[Stored]) -> tuple[int, ...]:
    return tuple(n * len(parts) if axis == CUT.get(name) else n for axis, n in enumerate(parts[0].shape))


def _merged(name: str, parts: list[Stored], index: Index) -> np.ndarray:
    """Reads a part of a tensor from the ranks that hold it."""
    axis = CUT.get(name)
    if axis is None:
        return parts[0].read(index)
    size = parts[0].shape[axis]
    start, stop, _ = index[axis].indices(size * len(parts))
    pieces = []
    for rank, part in enumerate(parts):
        own = slice(max(0, start - rank * size), min(size, stop - rank * size))
        if own.start < own.stop:
            pieces.append(part.read((*index[:axis], own, *index[axis + 1 :])))
    return np.concatenate(pieces, axis)


def half_split(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders whole heads' rows from interleaved pairs to our halves."""
    return matrix.reshape(-1, head_dim // 2, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def interleaved(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Undoes `half_split`."""
    return matrix.reshape(-1, 2, head_dim // 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def model_config(params: dict[str, Any], ranks: list[dict[str, Stored]], folder: str) -> ModelConfig:
    """Returns the model of a params.json; its vocab_size is -1 in published files, the head's rows say it."""
    rows = sum(rank[NAMES["head"]].shape[0] for rank in ranks if NAMES["head"] in rank)
    if not rows:
        raise UserError(f"{folder} lacks {NAMES['head']}: is every file there?")
    with describing(f"{folder}/params.json"):
        if params.get("vocab_size", -1) not in (-1, rows):
            raise ValueError(f"vocab_size is {params['vocab_size']!r} and {NAMES['head']} has {rows} rows")
        D, N = number(params, "dim"), number(params, "n_heads")
        model = ModelConfig(
            vocab_size=rows,
            d_model=D,
            n_layers=number(params, "n_layers"),
            n_heads=N,
            n_kv_heads=number(params, "n_kv_heads", N),
            head_dim=D // N,
            d_ff=ffn_width(D, number(params, "multiple_of"), number(params, "ffn_dim_multiplier", 1.0, float)),
            norm_eps=number(params, "norm_eps", kind=float),
            rope_theta=number(params, "rope_theta", 1e4, float),
        )
        return check_heads(model)


def write(source: Source, tokenizer: Tokenizer, folder: epath.Path, ranks: int) -> None:
    """Writes params.json, tokenizer.model and a file for each model-parallel rank. Raises UserError where it cannot be said so."""
    c = source.model
    if c.rope_scaling != 1:
        raise UserError(f"{source.name} scales its positions by {c.rope_scaling:g}, which params.json cannot say: export it --to hf")
    if c.head_dim * c.n_heads != c.d_model:
        raise UserError(f"{source.name} has heads of {c.head_dim}, and Meta's layout takes d_model / n_heads: export it --to hf")
    uneven = [shown(name, 0) for name, axis in CUT.items() if shapes(c)[name][axis] % ranks]
    if uneven or c.n_kv_heads % ranks:
        raise UserError(f"{some(uneven) or f'{c.n_kv_heads} key heads'} cannot be shared out over {ranks} ranks: change --ranks")
    with whole_folder(folder) as part, progress("exporting", source_bytes(source) * ranks) as advance:
        for rank in range(ranks):
            _write_rank(source, part / f"consolidated.{rank:02}.pth", rank, ranks, advance)
        (part / "params.json").write_text(json.dumps(params_of(c)))
        (part / "tokenizer.model").write_bytes(with_sentinels(tokenizer, c.vocab_size).SerializeToString(deterministic=True))


def params_of(c: ModelConfig) -> dict[str, Any]:
    """Returns a params.json from which Meta's rule gives this width of the feed-forward layer."""
    rule = next(((m, f) for m, f in ((256, 1.0), (4096, 1.3)) if ffn_width(c.d_model, m, f) == c.d_ff), None)
    multiple, multiplier = rule or (1, (c.d_ff + 0.5) / int(8 * c.d_model / 3))
    return {
        "dim": c.d_model,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "multiple_of": multiple,
        "ffn_dim_multiplier": multiplier,
        "norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "vocab_size": -1,
    }


def _write_rank(source: Source, path: epath.Path, rank: int, ranks: int, advance: Any) -> None:
    """Writes a rank's tensors one after the other, as torch.save would."""
    keys = list(names(source.model))
    own = {
        name: tuple(n // ranks if axis == CUT.get(name) else n for axis, n in enumerate(shape))
        for name, shape in shapes(source.model).items()
    }
    root = path.name.removesuffix(".pth")
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled([(shown(*key), source.dtypes[key[0]].name, own[key[0]]) for key in keys]))
        archive.writestr(f"{root}/byteorder", "little")
        for number, (name, layer) in enumerate(keys):
            matrix, axis = source.tensor(name, layer), CUT.get(name)
            advance(matrix.nbytes)
            if name in ("q", "k"):
                matrix = interleaved(matrix, source.model.head_dim)
            if axis is not None:
                matrix = np.split(matrix, ranks, axis)[rank]
            with archive.open(f"{root}/data/{number}", "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(matrix).tobytes())
        archive.writestr(f"{root}/version", "3\n")


def pickled(tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Returns the pickle of {name: tensor}, tensor i in storage i; spelled out, since what it calls by name is torch's."""
    named = lambda module, name: pickle.GLOBAL + f"{module}\n{name}\n".encode()
    text = lambda string: pickle.BINUNICODE + struct.pack("<I", len(string)) + string.encode()
    number = lambda value: pickle.LONG1 + struct.pack("<Bq", 8, value)
    several = lambda *items: pickle.MARK + b"".join(items) + pickle.TUPLE
    storages = {dtype: name for name, dtype in STORAGES.items()}

    def tensor(key: int, dtype: str, shape: tuple[int, ...]) -> bytes:
        stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = several(text("storage"), named("torch", storages[dtype]), text(str(key)), text("cpu"), number(math.prod(shape)))
        hooks = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
        view = several(*map(number, shape)), several(*map(number, stride)), pickle.NEWFALSE, hooks
        return named("torch._utils", "_rebuild_tensor_v2") + several(storage + pickle.BINPERSID, number(0), *view) + pickle.REDUCE

    items = [text(name) + tensor(key, dtype, shape) for key, (name, dtype, shape) in enumerate(tensors)]
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + b"".join(items) + pickle.SETITEMS + pickle.STOP
