"""Reads the header of a GGUF file, and rows of its tensors.

The header has metadata (typed keys and values) and the name, shape, type and offset of each tensor.
The package `gguf` makes an array of every string of the vocabulary, which takes seconds, and does
not notice that a file ends early; its tables of types and its dequantization are used here.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from etils import epath
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from codellama_jax.errors import UserError
from codellama_jax.system.files import open_file, reason

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 has other lengths of integers; no model was published in it
# Types that are read: llama.cpp's mixed quantizations also use Q5 and IQ4_NL, for rows that are no
# multiple of the 256 elements of a K-quant's block.
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
QUANTIZED = (
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
NUMBERS = {  # formats of `struct`
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
MAX_AXES = 4  # of a tensor, llama.cpp's limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file: a matrix of (outputs, inputs), or a vector."""

    shape: tuple[int, ...]
    kind: str  # the name of its type, such as Q4_K
    offset: int  # of its first byte in the file

    @property
    def dtype(self) -> str:
        """Returns the dtype of its values, float32 for quantized ones."""
        return PLAIN.get(self.kind, "float32")

    @property
    def row_bytes(self) -> int:
        """Returns the bytes of one row, which is all of a vector."""
        # A quantized row consists of blocks of `block` values, which take `size` bytes with their
        # scales.
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the tensor in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file."""

    path: epath.Path
    metadata: dict[str, Any]  # arrays are lists
    tensors: dict[str, StoredTensor]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows of a matrix, or all of a vector, dequantized.

        Raises UserError if the file cannot be read.
        """
        tensor = self.tensors[name]
        is_vector = len(tensor.shape) == 1
        shape = tensor.shape if is_vector else (stop - start, *tensor.shape[1:])
        first, rows = (0, 1) if is_vector else (start, stop - start)
        try:
            with open_file(self.path) as file:
                file.seek(tensor.offset + first * tensor.row_bytes)
                data = file.read(rows * tensor.row_bytes)
        except OSError as error:
            raise UserError(f"cannot read {name} from {self.path}: {reason(error)}") from error
        if len(data) < rows * tensor.row_bytes:
            raise UserError(f"{self.path} became shorter while it was read: copy it again")
        if tensor.kind in PLAIN:
            return np.frombuffer(data, jnp.dtype(tensor.dtype)).reshape(shape)
        # Blocks never cross rows, so that rows can be dequantized alone: uint8 [rows, bytes per
        # row].
        blocks = np.frombuffer(data, np.uint8).reshape(rows, tensor.row_bytes)
        return dequantize(blocks, GGMLQuantizationType[tensor.kind]).reshape(shape)


def read_header(path: epath.Path) -> GgufFile:
    """Returns the header of a file.

    Raises UserError for another format, a truncated or damaged file, and types that are not read.
    """
    try:
        with open_file(path) as file:
            return _Reader(path, file).header()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


class _Reader:
    """Reads the values of a header one after the other, and checks that the file has them."""

    def __init__(self, path: epath.Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = file.seek(0, 2)
        file.seek(0)

    def header(self) -> GgufFile:
        magic = self.file.read(len(MAGIC))
        if magic != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file: it starts with {magic!r}")
        (version,) = self.numbers("I")
        if version not in VERSIONS:
            # In a file for big-endian machines the low bytes come last.
            kind = "for big-endian machines" if version & 0xFFFF == 0 else f"version {version}"
            allowed = "little-endian files of version 2 or 3 are read"
            raise UserError(f"{self.path} is a GGUF file {kind}: {allowed}; convert it again")
        tensor_count, key_count = self.numbers("QQ")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.text()
            metadata[key] = self.value(*self.numbers("I"))
        headers = [self.tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damage(f"general.alignment is {alignment!r}")
        # Offsets of tensors count from the end of the header, rounded up to the alignment.
        start = alignment * -(-self.file.tell() // alignment)
        tensors = {}
        for name, shape, kind, offset in headers:
            if name in tensors:
                raise self.damage(f"it has the tensor {name} twice")
            tensors[name] = StoredTensor(shape, kind, start + offset)
        self.check_complete(tensors)
        return GgufFile(self.path, metadata, tensors)

    def check_complete(self, tensors: dict[str, StoredTensor]) -> None:
        """Raises UserError if the file ends before a tensor does."""
        end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
        if end > self.size:
            sizes = f"it has {self.size:,} bytes of {end:,}"
            raise UserError(f"{self.path} is truncated ({sizes}): download it again")

    def damage(self, problem: str) -> UserError:
        return UserError(f"{self.path} is damaged ({problem[:120]}): download it again")

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Returns numbers in a format of `struct`, little-endian."""
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def take(self, length: int) -> bytes:
        # Compared before reading: a damaged length may be more than the memory.
        left = self.size - self.file.tell()
        if length > left:
            sizes = f"its header needs {length:,} more bytes and {left:,} are left"
            raise UserError(f"{self.path} is truncated or damaged ({sizes}): download it again")
        return self.file.read(length)

    def text(self) -> str:
        data = self.take(*self.numbers("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.damage(f"its text {data[:40]!r} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """Returns a value of a type of GGUFValueType."""
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind in NUMBERS:
            return self.numbers(NUMBERS[GGUFValueType(kind)])[0]
        if kind != GGUFValueType.ARRAY:
            raise self.damage(f"a value of its metadata has the unknown type {kind}")
        inner, count = self.numbers("IQ")
        if inner == GGUFValueType.ARRAY:  # no software writes it; damage could nest without end
            raise self.damage("its metadata has an array of arrays")
        if inner in NUMBERS:
            form = np.dtype(f"<{NUMBERS[GGUFValueType(inner)]}")
            return np.frombuffer(self.take(count * form.itemsize), form).tolist()
        return [self.value(inner) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], str, int]:
        """Returns the name, shape, type and offset of a tensor."""
        name = self.text()
        (axes,) = self.numbers("I")
        if not 1 <= axes <= MAX_AXES:
            raise self.damage(f"its tensor {name} has {axes} axes")
        # The file has the axis of consecutive elements first.
        shape = tuple(reversed(self.numbers(f"{axes}Q")))
        kind, offset = self.numbers("IQ")
        # Types that the package does not know yet have a number only.
        names = {member.value: member.name for member in GGMLQuantizationType}
        kind_name = names.get(kind, f"type {kind}")
        if kind_name not in PLAIN and kind_name not in QUANTIZED:
            allowed = ", ".join((*PLAIN, *QUANTIZED))
            fix = "convert or download it in one of these"
            raise UserError(f"{self.path}: {name} is {kind_name}, read are {allowed}: {fix}")
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind_name]]
        if shape[-1] % block:
            raise self.damage(f"{name} has rows of {shape[-1]}, {kind_name} has blocks of {block}")
        return name, shape, kind_name, offset
