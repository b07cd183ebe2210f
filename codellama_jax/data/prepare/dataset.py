"""Stage 4: drops duplicates and contamination, splits the documents, and writes the dataset."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from codellama_jax.data import sources
from codellama_jax.data.prepare import counts
from codellama_jax.data.prepare.contamination.index import Decontamination
from codellama_jax.data.prepare.contamination.part_files import clean_text
from codellama_jax.data.prepare.parts import read_rows
from codellama_jax.data.prepare.shards import FEATURES, ShardWriter, shard_name, write_metadata
from codellama_jax.data.prepare.stages import MADE, StageFolder, fingerprint
from codellama_jax.data.prepared import FORMAT, MANIFEST, SPLITS
from codellama_jax.system.files import delete_file, write_json


@dataclass(frozen=True)
class WriteShards:
    """The work of the stage: writes the shards of one part of the documents.

    Attributes:
        stage: the folder of this stage.
        documents: the folder with the documents.
        duplicates: the folder that lists the duplicates; None where none were looked for.
        contaminated: the folder that lists contamination; None where none was looked for.
        params: the rules that the contamination was found with.
        by_repository: hold out repositories, not single files.
        validation_below: documents whose repository has a position below this are for validation.
        block_characters: split documents into blocks of at most this length; 0 does not.
        shard_bytes: the largest size of a shard's text.
        tokenizers: functions that return the number of tokens of a text, by fingerprint.
    """

    stage: StageFolder
    documents: StageFolder
    duplicates: StageFolder | None
    contaminated: StageFolder | None
    params: Decontamination
    by_repository: bool
    validation_below: float
    block_characters: int
    shard_bytes: int
    tokenizers: dict[str, Callable[[str], int]]

    def __call__(self, number: int) -> None:
        """Writes the shards of one part, and their description as its counts."""
        totals: dict[str, Any] = {}
        writers = {}
        for split in SPLITS:
            writers[split] = ShardWriter(self.stage.output(number, split), split, self.shard_bytes)
        for split, example in self.examples(number, totals):
            writers[split].write(example)
        shards = {}
        for split, writer in writers.items():
            writer.close()
            shards[split] = writer.shards
        self.stage.finish(number, totals | {"shards": shards})

    def examples(self, number: int, totals: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields the split and fields of each document of a part, in the order of the input.

        Adds to the counts in `totals`.
        """
        for document_id, document in self._kept(number, totals):
            repository = document["repository"] if self.by_repository else ""
            # A hash of the repository decides, not a random number: its files are in one split on
            # every machine, in every run, and when the corpus grows. Files of a repository share
            # much code, so that a repository in both splits would make the validation loss too low.
            # So would a document whose pieces are in both: without a repository its id decides.
            position = sources.position(repository or document_id)
            split = "validation" if position < self.validation_below else "train"
            _count(totals, split, position, document)
            for tokenizer, count_tokens in self.tokenizers.items():
                # Before blocks are made: the counts do not depend on block_characters.
                tokens = count_tokens(document["text"])
                counts.add(totals, "tokens", tokenizer, split, amount=tokens)
            for block in self._blocks(document):
                yield split, block

    def _kept(self, number: int, totals: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (id of the document, document or a piece of it) of all that is kept."""
        # Both tables list rows of this part only, so that a worker needs no other part's files.
        copies: dict[int, str] = {}
        if self.duplicates:
            for copy in _rows_if_any(self.duplicates.output(number)):
                copies[copy["row"]] = copy["kind"]
        marks: dict[int, list[dict[str, Any]]] = defaultdict(list)
        if self.contaminated:
            for match in read_rows(self.contaminated.output(number)):
                marks[match["row"]].append(match)
        for row, document in enumerate(read_rows(self.documents.output(number))):
            if row in copies:
                _drop(totals, f"{copies[row]}_duplicate", document)
                continue
            text = document["text"]
            # An n-gram match removes a passage; a text of a benchmark in full removes the document.
            pieces = clean_text(text, marks[row], self.params) if row in marks else [text]
            if not pieces:
                _drop(totals, "contaminated", document)
            elif pieces != [text]:
                counts.add(totals, "cleaned", "contaminated")
            for i, piece in enumerate(pieces):
                # A document that is still complete keeps its id.
                suffix = f"~{i}" if len(pieces) > 1 else ""
                piece_id = f"{document['id']}{suffix}"
                yield document["id"], document | {"id": piece_id, "text": piece}

    def _blocks(self, document: dict[str, Any]) -> Iterator[dict[str, str]]:
        example = {name: document[name] for name in FEATURES}
        if not self.block_characters:
            yield example
            return
        for i, block in enumerate(sources.blocks(document["text"], self.block_characters)):
            yield example | {"id": f"{document['id']}#{i}", "text": block}


def _drop(totals: dict[str, Any], reason: str, document: dict[str, Any]) -> None:
    counts.add(totals, "dropped", reason)
    counts.add_example(totals, reason, document["id"])


def _count(totals: dict[str, Any], split: str, position: float, document: dict[str, Any]) -> None:
    characters = len(document["text"])
    language = document["language"] or "unknown"
    counts.add(totals, "kept", split)
    counts.add(totals, "languages", language, "documents")
    counts.add(totals, "languages", language, "characters", amount=characters)
    counts.add(totals, "licenses", document["license"] or "unknown")
    counts.add(totals, "lengths", counts.length_bin(characters))
    # The positions next to either end decide the split of a corpus with very few repositories.
    # The extremes of a part are enough to find the bound of the full corpus without a second pass.
    least, most = totals.setdefault("positions", [position, position])
    totals["positions"] = [min(least, position), max(most, position)]


def _rows_if_any(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file; a part without duplicates has none."""
    if path.exists():
        yield from read_rows(path)


def validation_bound(part_counts: list[dict[str, Any]], bound: float) -> float:
    """Returns a bound on positions for which neither split is empty.

    It is `bound` unless all documents are on one side of it. One repository cannot be split: then
    everything is for training.
    """
    positions = [count["positions"] for count in part_counts if "positions" in count]
    if not positions:
        return bound
    least, most = min(low for low, _ in positions), max(high for _, high in positions)
    if least == most:
        return 0.0
    if bound <= least:
        # Above the least position alone: the next float would do if two positions were equal.
        return least + 2.0**-50
    return most if bound > most else bound


def discard_missing(out: epath.Path, stage: StageFolder, numbers: Sequence[int]) -> None:
    """Marks parts as not complete if one of their shards was deleted or truncated."""
    part_counts = stage.counts(numbers)
    # Shards move to the dataset once all parts are complete; then their last names are known.
    complete = None not in part_counts
    targets = _targets(out, stage, part_counts) if complete else {}
    for number, each in zip(numbers, part_counts):
        for split in SPLITS:
            for shard in each["shards"][split] if each else ():
                places = [stage.path / shard["name"], targets.get(shard["name"])]
                # A part without counts is not complete: only its counts need to be deleted to
                # repeat it.
                if not any(_has_size(path, shard["bytes"]) for path in places if path):
                    delete_file(stage.output(number, "json"))


def _has_size(path: epath.Path, size: int) -> bool:
    return path.exists() and path.stat().length == size


def _targets(
    out: epath.Path, stage: StageFolder, part_counts: Sequence[Any]
) -> dict[str, epath.Path]:
    """Returns the path in the dataset of each shard of the stage, in order."""
    targets = {}
    for split in SPLITS:
        names = []
        for each in part_counts:
            names += [shard["name"] for shard in each["shards"][split]]
        for index, name in enumerate(names):
            targets[name] = data_folder(out, stage) / shard_name(split, index, len(names))
    return targets


def data_folder(out: epath.Path, stage: StageFolder) -> epath.Path:
    """Returns the folder of the dataset inside that of the corpus."""
    return out / f"data-{stage.key}"


def finish(
    out: epath.Path,
    stage: StageFolder,
    part_counts: Sequence[dict[str, Any]],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Moves the shards into the dataset, writes TFDS' metadata and, last, the manifest.

    Args:
        out: the folder of the prepared corpus.
        stage: the folder with the shards of all parts.
        part_counts: what the parts wrote, in order.
        facts: more entries of the manifest.

    Returns:
        The manifest.
    """
    folder = data_folder(out, stage)
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in _targets(out, stage, part_counts).items():
        # After a kill some of them have been moved already.
        if (stage.path / name).exists():
            # Moved, not copied: a corpus of terabytes must not need twice its space.
            (stage.path / name).replace(target)
    splits: dict[str, list[dict[str, Any]]] = {}
    files: dict[str, list[Any]] = {}
    for split in SPLITS:
        shards = splits[split] = []
        for each in part_counts:
            # TFDS numbers the shards of a split through, in the order of the parts.
            shards += each["shards"][split]
        for index, shard in enumerate(shards):
            files[shard_name(split, index, len(shards))] = [shard["bytes"], shard["sha256"]]
    write_metadata(folder, {split: shards for split, shards in splits.items() if shards})
    for path in sorted(folder.glob("*.json")):
        content = path.read_bytes()
        files[path.name] = [len(content), hashlib.sha256(content).hexdigest()]
    manifest = {
        "format": FORMAT,
        # Of the contents: equal documents have it wherever they were prepared.
        "fingerprint": fingerprint(files),
        "data": folder.name,
        "splits": {split: _summary(shards) for split, shards in splits.items()},
        **facts,
        "files": files,
    }
    # The manifest is the sign of a complete dataset, so that it is written after all files. Data
    # folders of earlier runs are deleted only once it no longer names them.
    write_json(out / MANIFEST, manifest)
    for older in out.glob("data-*"):
        if MADE.fullmatch(older.name) and older.name != folder.name:
            older.rmtree(missing_ok=True)
    return manifest


def _summary(shards: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "documents": sum(shard["documents"] for shard in shards),
        "characters": sum(shard["characters"] for shard in shards),
        "shards": len(shards),
    }
