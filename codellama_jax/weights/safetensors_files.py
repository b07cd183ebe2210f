"""Reads the tensors of a folder of safetensors files, and finds the files of its model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from codellama_jax.errors import UserError, name_list
from codellama_jax.system.console import warn
from codellama_jax.system.files import is_bucket, reason
from codellama_jax.system.settings import read_settings, shown_value
from codellama_jax.weights.inputs import check_file, file_names, unused_weights
from codellama_jax.weights.layout import Index

# Names that transformers gives to the only file, to the index, and to each of several files.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


class Tensors:
    """The tensors of one or more safetensors files, by name."""

    def __init__(self, folder: epath.Path):
        """Opens the files of the model in `folder`.

        Raises UserError for a missing or damaged file and for a tensor that is in two files.
        """
        self.files: dict[str, str] = {}  # by tensor name
        self._opened: dict[str, Any] = {}  # by file name
        self._folder = folder
        for file in choose_files(folder):
            self._opened[file] = open_file(folder / file)
            for name in self._opened[file].keys():  # noqa: SIM118, because it is not a dict
                if name in self.files:
                    both = f"{self.files[name]} and {file}"
                    raise UserError(f"{folder}: tensor {name} is in both {both}: remove one file")
                self.files[name] = file

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Returns the shape of a tensor, and its dtype in safetensors' notation."""
        part = self._opened[self.files[name]].get_slice(name)
        return tuple(part.get_shape()), part.get_dtype()

    def read(self, name: str, index: Index) -> np.ndarray:
        """Returns a part of a tensor. Raises UserError if the file cannot be read."""
        file = self.files[name]
        try:
            return self._opened[file].get_slice(name)[index]
        except (SafetensorError, OSError) as error:
            path = self._folder / file
            raise UserError(f"cannot read {name} from {path}: {reason(error)}") from error


def open_file(path: epath.Path) -> Any:
    """Opens one file. Raises UserError if it is missing or damaged."""
    check_file(path)
    try:
        # Not memory-mapped: the pages read would count as memory of the process.
        return safe_open(str(path), framework="np", backend="pread")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}; download it again") from None


def choose_files(folder: epath.Path) -> list[str]:
    """Returns the names of the files that hold the model, chosen as in transformers.

    The first of these that exists is taken: model.safetensors; the files that the index names; the
    complete set of model-NNNNN-of-NNNNN.safetensors; all safetensors files. Warns of weight files
    that are not used. Raises UserError if a file is missing or the choice is ambiguous.
    """
    if is_bucket(folder):
        fix = f"copy it, or import it on one machine into {folder.parent}/RUN"
        raise UserError(f"{folder}: safetensors are read from a local folder; {fix}")
    names = file_names(folder)
    if SINGLE in names:
        used = [SINGLE]
    elif INDEX in names:
        used = _indexed_files(folder / INDEX)
    else:
        used = _files_without_index(folder, names)
    # Also for names of an index, which lists files that a truncated download lacks.
    absent = [name for name in used if name not in names]
    if absent:
        raise UserError(f"{folder} has no {name_list(absent)}: is the download complete?")
    # An index beside model.safetensors is unused, and a params.json means Meta's files as well.
    known = used if used == [SINGLE] else [*used, INDEX]
    unused = unused_weights(names, known, "params.json")
    if unused:
        warn(f"{folder}: weights are read from {name_list(used)}; not used: {', '.join(unused)}")
    return used


def _indexed_files(index: epath.Path) -> list[str]:
    """Returns the names of the files that an index names."""
    settings = read_settings(index)
    tensors = settings.values.get("weight_map")
    if not isinstance(tensors, dict) or not tensors:
        raise settings.error("weight_map", "an object that maps tensor names to file names")
    for tensor, file in tensors.items():
        if not isinstance(file, str) or not file or file != epath.Path(file).name:
            value = shown_value(file)
            allowed = "must be the name of a file in the same folder"
            raise UserError(f"{index}: the file of {tensor[:100]!r} {allowed}, got {value}")
    return sorted(set(tensors.values()))


def _files_without_index(folder: epath.Path, names: list[str]) -> list[str]:
    """Returns the names of the shards, or of all safetensors files if there are no shards.

    Raises UserError for shards of several models.
    """
    files = [name for name in names if name.endswith(".safetensors")]
    if not files:
        has_bin = any(name.endswith(".bin") for name in names)
        fix = "save it with safe_serialization=True" if has_bin else "is the download complete?"
        raise UserError(f"{folder} has no *.safetensors: {fix}")
    matches = [match for match in map(SHARD.fullmatch, files) if match]
    sets = {(match[1], match[3]) for match in matches}
    # One model can have shards and other safetensors files, such as an adapter, but two sets of
    # shards are two models.
    if len(sets) > 1:
        shown = " and ".join(f"{prefix}-*-of-{count}" for prefix, count in sorted(sets))
        raise UserError(f"{folder} has shards of several models, {shown}: keep one set")
    if not sets:
        return files
    ((prefix, count),) = sets
    # Compared first, because a damaged name may stand for 99,999 files.
    if int(count) > len(names) or not int(count):
        expected = f"all {int(count)} files {prefix}-*-of-{count}.safetensors"
        raise UserError(f"{folder} has {len(matches)} shards, not {expected}: is it complete?")
    return [f"{prefix}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
