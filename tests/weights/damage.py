"""What is done to a folder of weights in the tests of mistakes."""

import json
import os
import zipfile

import published
from safetensors.numpy import load_file, save_file

from codellama_jax.weights import layout, meta

SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


def edited(folder, **changes):
    """Writes a folder's config.json again; a change to None leaves the name out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def edited_params(folder, **changes):
    """Writes a folder's params.json again."""
    params = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(json.dumps(params))


def rewritten(folder, change):
    """Writes model.safetensors again with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def retyped(folder, name, dtype):
    """Writes model.safetensors again with one tensor in another dtype."""
    rewritten(folder, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))


def indexed(folder, text):
    """Makes a shard of model.safetensors, with an index of that text."""
    (folder / "model.safetensors").rename(folder / SHARD)
    (folder / INDEX).write_text(text)


def header(folder, length):
    """Overwrites the length of the header of model.safetensors."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def repickled(folder, content):
    """Puts another pickle into the first of Meta's files."""
    file = folder / "consolidated.00.pth"
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new:
        for name, data in entries.items():
            new.writestr(name, content if name.endswith("data.pkl") else data)


def mixed(folder):
    """Puts a file of another dtype among Meta's."""
    half = layout.cast(meta.open_source(folder), "bfloat16")
    meta.write(half, published.tokenizer(), folder / "half", ranks=2)
    (folder / "half" / "consolidated.01.pth").replace(folder / "consolidated.01.pth")


def cut(file, size=-100):
    """Truncates a file."""
    file.write_bytes(file.read_bytes()[:size])


def replaced(file, make):
    """Puts something else in the place of a file."""
    file.unlink()
    make(file)
