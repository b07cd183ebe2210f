"""The documents of a source: a corpus that was prepared before, or one prepared here and cached.

Folders of files and the texts that Python installs go through the same stages as the verb
`prepare`, in this process. TensorFlow is not imported. A cached corpus that is damaged is prepared
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from etils import epath

from codellama_jax.config import CorpusConfig, to_dict
from codellama_jax.data.prepare.inputs import (
    Part,
    fingerprint_of,
    parts_of,
    sampled,
    sorted_by_name,
)
from codellama_jax.data.prepare.policies import POLICIES, Policy
from codellama_jax.data.prepare.preparation import (
    NothingKeptError,
    Preparation,
    PrepareConfig,
    Result,
    reasons,
)
from codellama_jax.data.prepare.readers.base import InputOptions
from codellama_jax.data.prepare.readers.files import names_of
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.data.prepare.stages import fingerprint
from codellama_jax.data.prepared import SPLITS, Prepared, is_prepared, open_corpus, open_prepared
from codellama_jax.data.sources import GENERATED
from codellama_jax.errors import UserError
from codellama_jax.system import locks
from codellama_jax.system.files import is_bucket, read_json, reason, user_path, write_json
from codellama_jax.system.progress import Say, announced, silent

TEXT = ("discussions", "language")  # sources of natural language; all others are code
# Of the contents of a cached corpus; part of the name of its folder.
VERSION = "2.0.0"
# The file of a cache folder that names the subfolder with complete documents; it is written last.
RECORD = "prepared.json"
MAX_FILE_BYTES = 2**30  # files of a user's own folder are not dropped for their size
READABLE = (
    "text files in UTF-8, one document per file, or tables with a column of texts (see the verb"
    " `prepare`)"
)


def prepare(
    corpus: CorpusConfig,
    source: str,
    block_chars: int,
    cache_dir: epath.PathLike,
    print_line: Say = silent,
) -> Prepared:
    """Returns the documents of a source, from `cache_dir` if they are prepared already.

    A path `prepared:DIR` is opened as it was prepared, whatever `block_chars` is.

    Any number of processes may do so at the same time. The others wait for the first; where the
    file system has no locks, each writes a separate subfolder. One small file, written last, names
    the subfolder in use.

    Raises UserError if there is nothing to read or the disk is full.

    Args:
        corpus: where the documents of each source come from.
        source: the name of the source.
        block_chars: the maximum length of a document in characters; 0 does not split files.
        cache_dir: a folder, local or gs://.
        print_line: prints a line of progress.
    """
    path = corpus.paths()[source]
    # Before the cache: the folder of the user is read in place and never copied.
    if is_prepared(path):
        return open_prepared(path)
    config = PrepareConfig(
        policy=_policy(source, path),
        inputs=InputOptions(max_file_bytes=MAX_FILE_BYTES),
        validation_fraction=corpus.validation_fraction,
        split_by="file",
        # A generated document is one example, which must not be split.
        block_characters=0 if path in GENERATED else block_chars,
    )
    with announced(print_line, f"{source}: listing the files of {path}"):
        # In the order of earlier versions, because the first of equal documents is kept.
        # Generated documents are not files: a sample of 700 would be learned by heart.
        most = 0 if path in GENERATED else corpus.max_files
        parts = sorted_by_name(sampled(parts_of(path, "", config.inputs), most))
    folder = user_path(cache_dir) / _folder_name(path, parts, config)
    try:
        if prepared := _cached(folder, parts, print_line):
            return prepared
        with locks.one_after_another(folder, print_line):
            # Another process may have prepared it while this one waited for the lock.
            if prepared := _cached(folder, parts, silent):
                return prepared
            with announced(print_line, f"{source}: reading {path}"):
                record = _prepare(folder, path, parts, config)
        print_line(_summary(source, record["counts"], record["left_out"]))
        return _open(folder, record)
    except (OSError, ImportError, RuntimeError) as error:  # ArrayRecord's on a full disk
        raise UserError(f"cannot prepare the corpus in {folder}: {reason(error)}") from error


def _policy(source: str, path: str) -> Policy:
    """Returns the rules for a source: those for generated code do not fit prose."""
    code = POLICIES["code_llama"]
    if path in GENERATED:  # generated functions are alike by design
        return POLICIES["none"]
    if source not in TEXT:
        return code
    return dataclasses.replace(
        POLICIES["none"],
        exact_duplicates=code.exact_duplicates,
        near_duplicates=code.near_duplicates,
    )


def _folder_name(path: str, parts: Sequence[Part], config: PrepareConfig) -> str:
    """Returns a folder name that changes with anything that changes the documents.

    A stamp changes with the content of a file, so that a prepared corpus is found again without
    reading the files.
    """
    # The parts stand for the input: they hold the name, size and time of modification of each file.
    key = fingerprint(VERSION, fingerprint_of(parts), to_dict(config))
    readable = re.sub(r"\W+", "-", path).strip("-")[-40:]
    return f"{readable}-{key}"


def _prepare(
    folder: epath.Path, path: str, parts: Sequence[Part], config: PrepareConfig
) -> dict[str, Any]:
    """Prepares the documents in a new subfolder, then writes and returns the record of it."""
    # A random name: two processes that prepare the same corpus where the file system has no locks
    # never write to the same file.
    attempt = folder / uuid.uuid4().hex
    try:
        preparation = Preparation(parts, config, attempt, Runner(), silent)
        try:
            result = preparation.run()
        except NothingKeptError:
            left_out = reasons(preparation.report["documents"])
            raise UserError(_too_few(path, preparation.report, 0, left_out)) from None
        report = result.report
        left_out = reasons(report["documents"], report["dataset"])
        kept = result.manifest["splits"]
        if not all(split["documents"] for split in kept.values()):
            files = sum(report["dataset"]["kept"].values())
            raise UserError(_too_few(path, report, files, left_out))
        # Without locks another process may have written the same documents meanwhile.
        if _cached(folder, parts, silent):
            attempt.rmtree()
            return read_json(folder / RECORD)
        record = {
            "path": attempt.name,
            # Kept in the record, because the report of every later run shows them.
            "counts": _counts(report, kept),
            "left_out": left_out,
            "fingerprint": _fingerprint(result, parts, config.block_characters > 0),
        }
        record["checksum"] = fingerprint(record)
        # Only now: the fingerprint reads the stages once more. Kept, they would double the size of
        # the cache.
        preparation.work.rmtree(missing_ok=True)
        write_json(folder / RECORD, record)
        return record
    except BaseException:  # an interrupt too must leave no half of a corpus behind
        attempt.rmtree(missing_ok=True)
        raise


def _too_few(path: str, report: dict[str, Any], kept: int, left_out: str) -> str:
    read = report["documents"].get("read", {}).get("documents", 0)
    return (
        f"of the {read:,} documents of the corpus {kept} can be used ({path}), and it takes one to"
        f" train and one to validate. Left out: {left_out or 'none'}. Add files: {READABLE}"
    )


def _counts(report: dict[str, Any], kept: dict[str, Any]) -> dict[str, int]:
    """Returns counts for the report of a run: of files, of dropped files, of documents by split."""
    languages = report["dataset"]["languages"].values()
    counts = {
        "files": sum(report["dataset"]["kept"].values()),
        "characters": sum(language["characters"] for language in languages),
    }
    for stage in ("documents", "dataset"):
        counts |= report[stage].get("dropped", {})
    return counts | {split: kept[split]["documents"] for split in SPLITS}


def _fingerprint(result: Result, parts: Sequence[Part], has_blocks: bool) -> str:
    """Returns a hash of the ids and texts of both splits.

    For a corpus of one shard it is computed as before the stages existed, so that runs of that time
    resume; their documents had the order of the shard.
    """
    if any(split["shards"] > 1 for split in result.manifest["splits"].values()):
        return result.manifest["fingerprint"]
    by_file: dict[str, dict[str, list[tuple[str, str]]]] = {split: {} for split in SPLITS}
    for part in parts:
        for split, example in result.work.examples(part.number, {}):
            name = example["id"].rpartition("#")[0] if has_blocks else example["id"]
            blocks = by_file[split].setdefault(name, [])
            blocks.append((example["id"], example["text"]))
    texts = {}
    for split, files in by_file.items():
        texts[split] = [block for name in sorted(files) for block in files[name]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _summary(source: str, counts: dict[str, int], left_out: str) -> str:
    kept = f"{source}: {counts['files']:,} files, {counts['characters']:,} characters"
    return f"{kept}; left out: {left_out}" if left_out else kept


def _cached(folder: epath.Path, parts: Sequence[Part], print_line: Say) -> Prepared | None:
    """Returns the prepared documents of some parts in a cache folder.

    Returns None if they are missing, damaged or only a sample of the parts.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        record = read_json(folder / RECORD)
        prepared = _open(folder, record)
        if _has_all_files(record["counts"], parts):
            return prepared
        print_line(f"the prepared corpus in {folder} is a sample: preparing all files")
        return None
    # A cache may always be made again, so that damage costs time but never ends the run.
    except Exception as error:  # TFDS and ArrayRecord raise many types for a damaged file
        # Without the fix, "run `codellama-jax prepare`", of a corpus that a user prepared.
        details = reason(error).partition(": run ")[0].partition(": delete this file")[0]
        problem = f"the prepared corpus in {folder} is damaged ({details})"
        print_line(f"{problem}: preparing it again")
        return None


def _has_all_files(counts: dict[str, int], parts: Sequence[Part]) -> bool:
    """Returns whether a cached corpus accounts for every file of the parts, as kept or dropped.

    Earlier versions wrote the samples of `CorpusConfig.max_files` to the folder of all files.
    """
    listed = 0
    for part in parts:
        listed += sum(len(names_of(piece)) for piece in part.slices)
    # The other counts are of files that were dropped, by reason, and rows of tables beside them.
    read = sum(count for name, count in counts.items() if name not in (*SPLITS, "characters"))
    return read >= listed


def _open(folder: epath.Path, record: dict[str, Any]) -> Prepared:
    """Opens the documents that prepared.json names. Raises an exception if a file is damaged."""
    values = {name: value for name, value in record.items() if name != "checksum"}
    if record["checksum"] != fingerprint(values):
        raise ValueError(f"{RECORD} has changed")
    # On an object store the check would download the corpus once more.
    corpus = open_corpus(folder / record["path"], check_contents=not is_bucket(folder))
    return dataclasses.replace(
        corpus, counts=record["counts"], fingerprint=record["fingerprint"], is_large=False
    )
