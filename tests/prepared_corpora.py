"""Writes small prepared corpora, as the verb `prepare` does, and reads their documents."""

import hashlib
import json
from pathlib import Path
from typing import Any

from etils import epath

from codellama_jax.data import pipeline
from codellama_jax.data.prepare import dataset
from codellama_jax.data.prepare.shards import FEATURES, ShardWriter, shard_name, write_metadata

DATA = "data-1"


def texts(count: int, name: str = "f") -> dict[str, str]:
    """Returns texts by id, each of a different length."""
    found = {}
    for i in range(count):
        lines = [f"def {name}{i}_{j}(x):\n    return x * {i * j}\n" for j in range(1 + i % 7)]
        found[f"{name}/{i}.py"] = "\n".join(lines)
    return found


def write(
    folder: Path, documents: dict[str, dict[str, str]], shard_bytes: int = 2**20, **facts: Any
) -> str:
    """Writes a prepared corpus and returns its name, `prepared:DIR`.

    Args:
        folder: the folder to make.
        documents: texts by id, by split.
        shard_bytes: the size of a shard's text.
        facts: other entries of the manifest.
    """
    data = epath.Path(folder) / DATA
    data.mkdir(parents=True)
    shards: dict[str, list[dict]] = {}
    splits, files = {}, {}
    for split in dataset.SPLITS:
        writer = ShardWriter(data / split, split, shard_bytes)
        for name, text in documents.get(split, {}).items():
            writer.write(dict.fromkeys(FEATURES, "unknown") | {"id": name, "text": text})
        writer.close()
        for index, shard in enumerate(writer.shards):
            final = shard_name(split, index, len(writer.shards))
            (data / shard["name"]).rename(data / final)
            files[final] = [shard["bytes"], shard["sha256"]]
        shards[split] = writer.shards
        splits[split] = {
            "documents": sum(shard["documents"] for shard in writer.shards),
            "characters": sum(shard["characters"] for shard in writer.shards),
            "shards": len(writer.shards),
        }
    write_metadata(data, {split: found for split, found in shards.items() if found})
    for path in data.glob("*.json"):
        files[path.name] = [path.stat().length, hashlib.sha256(path.read_bytes()).hexdigest()]
    manifest = {
        "format": dataset.FORMAT,
        "fingerprint": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "data": DATA,
        "splits": splits,
        "tokens": {},
        "block_characters": 0,
        **facts,
        "files": files,
    }
    (Path(folder) / dataset.MANIFEST).write_text(json.dumps(manifest))
    return f"prepared:{folder}"


def many(folder: Path, source: Path, copies: int) -> str:
    """Writes a corpus that lists the training shards of another one `copies` times, as links.

    Returns its name, `prepared:DIR`.
    """
    manifest = json.loads((source / dataset.MANIFEST).read_text())
    old = source / DATA
    lengths = json.loads((old / "dataset_info.json").read_text())["splits"]
    by_split = {split["name"]: list(map(int, split["shardLengths"])) for split in lengths}
    data = epath.Path(folder) / DATA
    data.mkdir(parents=True)
    shards: dict[str, list[dict]] = {}
    files = {}
    for split, counts in by_split.items():
        times = copies if split == "train" else 1
        shards[split] = []
        for index in range(times * len(counts)):
            place = index % len(counts)
            original = old / shard_name(split, place, len(counts))
            name = shard_name(split, index, times * len(counts))
            (Path(folder) / DATA / name).hardlink_to(original)
            size = original.stat().st_size
            files[name] = [size, manifest["files"][original.name][1]]
            shards[split].append({"documents": counts[place], "bytes": size})
        for key in manifest["splits"][split]:
            manifest["splits"][split][key] *= times
    write_metadata(data, shards)
    manifest |= {"files": files, "fingerprint": f"{manifest['fingerprint']}x{copies}"}
    (Path(folder) / dataset.MANIFEST).write_text(json.dumps(manifest))
    return f"prepared:{folder}"


def documents(split):
    return {split[i]["id"].decode(): pipeline.text_of(split[i]) for i in range(len(split))}
