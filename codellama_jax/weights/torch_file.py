"""Reads and writes the files of torch.save without torch.

Such a file is a zip archive: data.pkl, a pickle of {name: tensor} that names storages by key, and
data/KEY, the bytes of each storage. Unpickling can execute any code; here it cannot, because the
unpickler knows only five names and refuses the others.
"""

from __future__ import annotations

import collections
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.system.files import LIBRARY_ERRORS, reason
from codellama_jax.weights.inputs import check_file
from codellama_jax.weights.layout import Index

STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
# Of a tensor to write: the keys that lead to it, its dtype and its shape.
Described = tuple[tuple[str, ...], str, tuple[int, ...]]
MAX_DEPTH = 16  # of dicts in dicts; no model has so many
MAX_PICKLE = 2**28  # bytes of names and shapes; no model has so many


@dataclass(frozen=True)
class Stored:
    """A row-major tensor stored in a file."""

    file: epath.Path
    offset: int  # of its first byte in the file
    dtype: str
    shape: tuple[int, ...]

    def read(self, index: Index) -> np.ndarray:
        """Returns a part of the tensor, for which it reads the rows of the part in full.

        Raises UserError if the file is too short or cannot be read.
        """
        dtype, width = jnp.dtype(self.dtype), math.prod(self.shape[1:])
        start, stop, _ = index[0].indices(self.shape[0])
        size = (stop - start) * width * dtype.itemsize
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset + start * width * dtype.itemsize)
                data = file.read(size)
        except LIBRARY_ERRORS as error:
            raise UserError(f"cannot read {self.file}: {reason(error)}") from error
        if len(data) != size:
            raise UserError(f"{self.file} ends before its last tensor: download it again")
        return np.frombuffer(data, dtype).reshape(stop - start, *self.shape[1:])[:, *index[1:]]


class SafeUnpickler(pickle.Unpickler):
    """Unpickles a file of tensors: resolves the five names that it needs and refuses others.

    Args:
        file: the open data.pkl.
        path: the archive, for messages.
        offsets: (offset in the archive, bytes) of each storage, by key.
    """

    def __init__(self, file: Any, path: epath.Path, offsets: dict[str, tuple[int, int]]):
        super().__init__(file)
        self.path, self.offsets = path, offsets

    def find_class(self, module: str, name: str) -> Any:
        """Returns the replacement of a class or function of torch.

        Raises UserError for a name that a file of weights does not have.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        # torch calls this function for each tensor; here it returns where the tensor is stored.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        unknown = f"{module}.{name}, which no file of weights needs"
        raise UserError(f"{self.path} refers to {unknown}: it was not run")

    def persistent_load(self, pid: tuple) -> tuple[str, str, int]:
        """Returns dtype, key and number of elements of a storage."""
        _, dtype, key, _, size = pid
        return dtype, key, size

    def tensor(
        self, storage: tuple[str, str, int], start: int, shape: tuple, stride: tuple, *_: Any
    ) -> Stored:
        """Returns where a tensor is stored; takes the arguments of `_rebuild_tensor_v2`.

        Raises UserError if it is not row-major or exceeds its storage.

        Args:
            storage: the result of `persistent_load`.
            start: the index of its first element in the storage.
            shape: its shape.
            stride: the distance in elements along each axis.
        """
        # Of the two sizes, the one in the archive counts: a damaged pickle may enlarge the other.
        dtype, key = storage[:2]
        offset, size = self.offsets.get(key, (0, 0))
        itemsize = jnp.dtype(dtype).itemsize
        # A transposed tensor would need another way of reading; published files have none.
        row_major = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        end = (start + math.prod(shape)) * itemsize
        if list(stride) != row_major or min(start, *shape, 0) < 0 or end > size:
            problem = "is damaged, or holds a tensor that is not row-major"
            raise UserError(f"{self.path} {problem}: write it again with torch.save")
        return Stored(self.path, offset + start * itemsize, dtype, tuple(shape))


def read_pickled(path: epath.Path) -> dict[str, Stored]:
    """Returns the tensors, by name, of a file that torch.save wrote. Reads none of their values.

    Names of dicts in dicts are joined by dots. Raises UserError for any other file.
    """
    check_file(path)
    again = "download it again"
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            # All entries are in one folder, named after the file when it was saved.
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            offsets = {}
            for name, entry in entries.items():
                if name.startswith("data/"):
                    offsets[name.removeprefix("data/")] = _data(file, entry)
            # Checked before it is read: a damaged size would fill the memory.
            if entries["data.pkl"].file_size > MAX_PICKLE:
                raise zipfile.BadZipFile("data.pkl is too large")
            with archive.open(entries["data.pkl"]) as names:
                tensors = SafeUnpickler(names, path, offsets).load()
    except UserError:
        raise
    except (zipfile.BadZipFile, KeyError) as error:
        problem = f"is not a complete file of torch.save: {reason(error)}"
        raise UserError(f"{path} {problem}; {again}") from None
    except Exception as error:  # a damaged pickle may raise any type
        problem = f"cannot be unpickled: {type(error).__name__}: {reason(error)}"
        raise UserError(f"{path} {problem}; {again}") from None
    flat = _flat(tensors, MAX_DEPTH)
    if flat is None:
        expected = "tensors by name: give Meta's consolidated.NN.pth"
        raise UserError(f"{path} holds something other than {expected}")
    return flat


def _flat(tensors: Any, depth: int) -> dict[str, Stored] | None:
    """Returns tensors by their dotted names; None if there is anything else, or more depth."""
    # A damaged or malicious pickle may have a dict that holds itself.
    if not isinstance(tensors, dict) or not depth:
        return None
    flat: dict[str, Stored] = {}
    for name, value in tensors.items():
        inner = {"": value} if isinstance(value, Stored) else _flat(value, depth - 1)
        if not isinstance(name, str) or inner is None:
            return None
        for rest, tensor in inner.items():
            flat[f"{name}.{rest}" if rest else name] = tensor
    return flat


def _data(file: Any, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Returns the offset of an entry's bytes in the archive, and their number.

    Raises BadZipFile if the entry is compressed, as torch.save never does.
    """
    # A stored entry can be read at any offset, a compressed one only from its start.
    if entry.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"{entry.filename} is compressed")
    # A local header has 30 bytes, then the name and an extra field of the lengths at byte 26. The
    # directory at the end of the archive has another length for the extra field.
    file.seek(entry.header_offset + 26)
    name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    return entry.header_offset + 30 + name + extra, entry.file_size


def write_pickled(
    path: epath.Path,
    tensors: list[Described],
    matrices: Iterable[np.ndarray],
) -> None:
    """Writes a file like torch.save, with one tensor in memory.

    `tensors` describes each tensor, `matrices` holds their values in the same order.
    """
    root = path.stem  # as torch.save names the folder in the archive
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled(tensors))
        archive.writestr(f"{root}/byteorder", "little")
        for number, matrix in enumerate(matrices):
            # The size is not known when the header is written, and may exceed 4 GiB.
            with archive.open(f"{root}/data/{number}", "w", force_zip64=True) as entry:
                entry.write(np.ascontiguousarray(matrix).tobytes())
        archive.writestr(f"{root}/version", "3\n")


def pickled(tensors: list[Described]) -> bytes:
    """Returns the pickle of {name: tensor}, or of dicts in dicts, where tensor i has storage i.

    It is assembled from opcodes, which the comments of Python's pickletools describe: the pickle
    module writes only functions that it can import, and these are torch's.
    """
    tree: dict[str, Any] = {}
    for key, (path, dtype, shape) in enumerate(tensors):
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = _tensor(key, dtype, shape)
    return pickle.PROTO + b"\x02" + _dict(tree) + pickle.STOP


def _dict(tree: dict[str, Any]) -> bytes:
    """Returns the opcodes of a dict, whose values are dicts or the opcodes of tensors."""
    items = b""
    for name, value in tree.items():
        items += _text(name) + (_dict(value) if isinstance(value, dict) else value)
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def _tensor(key: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns the opcodes of one tensor.

    They call torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks).
    """
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    torch_names = {dtype_name: torch_name for torch_name, dtype_name in STORAGES.items()}
    parts = (_text("storage"), _named("torch", torch_names[dtype]), _text(str(key)), _text("cpu"))
    # BINPERSID makes the reader pass this tuple to `persistent_load`.
    storage = _tuple(*parts, _number(math.prod(shape))) + pickle.BINPERSID
    hooks = _named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    sizes = (_tuple(*map(_number, shape)), _tuple(*map(_number, stride)))
    arguments = _tuple(storage, _number(0), *sizes, pickle.NEWFALSE, hooks)
    return _named("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(string: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(string)) + string.encode()


def _number(value: int) -> bytes:
    # 8 bytes for every number: shorter opcodes would need one for each range of sizes.
    return pickle.LONG1 + struct.pack("<Bq", 8, value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
