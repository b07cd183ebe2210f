"""Near-duplicate removal of `codellama-jax prepare`, beside datasketch and datatrove on one core.

    PYTHONPATH=. python speed/near_duplicates.py [FOLDER] [PYTHON]

All find the near-duplicates of the same files with 256 permutations of 5-grams of words, 25 bands
of 10. They run alternately for three turns, and processor time counts. `prepare` includes its part
files and Beam in this process. The datasketch side is a plain loop that uses BigCode's tokens.

FOLDER holds the source files, by default those of Python's standard library. PYTHON is an
interpreter that has datatrove, best in a separate environment (`pip install
datatrove[io]==0.10.1 nltk spacy tokenizers`). datatrove splits texts into words by rules for
English, so that it finds others.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from datasketch import MinHash, MinHashLSH
from rich.console import Console
from rich.table import Table

from codellama_jax.data.prepare import parts
from codellama_jax.data.prepare.duplicates import minhash
from codellama_jax.data.prepare.duplicates.minhash import NearDuplicates
from codellama_jax.data.prepare.duplicates.stage import find_duplicates
from codellama_jax.data.prepare.runners import Runner

FILES = 600
TURNS = 3
ROWS_PER_PART = 500
PARAMS = NearDuplicates(enabled=True)
# Runs in the interpreter that has the package.
DATATROVE = """
import pathlib, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.hashing import HashConfig
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import load_word_tokenizer

logger.remove()
load_word_tokenizer("eng").word_tokenize("imports its rules")
source, folder = sys.argv[1:]
start = time.process_time()
hashes = HashConfig(hash_fc="sha1", precision=32)
config = minhash.MinhashConfig(
    n_grams=5, num_buckets=25, hashes_per_bucket=10, hash_config=hashes
)
names = [f"{folder}/{name}" for name in ("signatures", "buckets", "removed")]
steps = [
    (1, [JsonlReader(source), minhash.MinhashDedupSignature(names[0], config=config)]),
    (25, [minhash.MinhashDedupBuckets(names[0], names[1], config=config)]),
    (1, [minhash.MinhashDedupCluster(names[1], names[2], config=config)]),
]
for number, (tasks, pipeline) in enumerate(steps):
    logs = f"{folder}/logs{number}"
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=logs).run()
removed = sum(path.stat().st_size for path in pathlib.Path(names[2]).glob("*.remove")) // 4
print("result", time.process_time() - start, removed)
"""


def read_texts(folder: str) -> list[str]:
    """Returns the texts of up to FILES source files in UTF-8, in the order of their paths."""
    texts = []
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in (".py", ".c", ".h", ".cpp", ".js", ".ts", ".java") and path.is_file():
            try:
                # Files that are not UTF-8 are left out for all sides alike.
                texts.append(path.read_bytes().decode())
            except UnicodeDecodeError:
                continue
        if len(texts) == FILES:
            break
    return texts


def run_prepare(texts: list[str], folder: str) -> tuple[float, int]:
    """Returns the seconds of `prepare` from texts to the lists of duplicates, and their number."""
    start = time.process_time()
    paths = []
    for number, first in enumerate(range(0, len(texts), ROWS_PER_PART)):
        rows = []
        for text in texts[first : first + ROWS_PER_PART]:
            # `prepare` finds exact duplicates by this digest.
            digest = hashlib.sha256(text.encode()).digest()[:16]
            bands = minhash.band_hashes(text, PARAMS)
            rows.append({"text": text, "language": "", "stars": -1, "digest": digest})
            rows[-1] |= {"bands": bands, "id": str(first + len(rows))}
        paths.append(Path(folder) / "documents" / parts.part_name(number))
        parts.write_rows(paths[-1], parts.DOCUMENTS, rows, sized="text")
    summary = find_duplicates(Runner(), paths, PARAMS, True, Path(folder) / "duplicates")
    return time.process_time() - start, summary["exact"] + summary["near"]


def sha1_hash32(data: bytes) -> int:
    """Returns the hash of a shingle as datasketch and BigCode compute it."""
    return struct.unpack("<I", hashlib.sha1(data).digest()[:4])[0]


def run_datasketch(texts: list[str]) -> tuple[float, int]:
    """Returns the seconds of a plain loop over datasketch's index, and the number of duplicates."""
    start = time.process_time()
    index = MinHashLSH(num_perm=256, params=(25, 10))
    parent = list(range(len(texts)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for number, text in enumerate(texts):
        tokens = re.split("[^A-Za-z_0-9]", text)
        # Five shifted copies side by side give every run of five tokens.
        grams = zip(*(tokens[offset:] for offset in range(5)))
        shingles = {" ".join(gram).encode() for gram in grams}
        sketch = MinHash(256, seed=42, hashfunc=sha1_hash32, scheme="legacy")
        sketch.update_batch(shingles)
        for match in index.query(sketch):
            # Union-find: a group of near-duplicates is a connected component, of which the first
            # file stays.
            low, high = sorted((root(number), root(match)))
            parent[high] = low
        # After the query, so that a text does not match itself.
        index.insert(number, sketch)
    removed = sum(root(number) != number for number in range(len(texts)))
    return time.process_time() - start, removed


def run_datatrove(python: str, source: str, folder: str) -> tuple[float, int]:
    """Returns the seconds of datatrove's three stages, and the number of duplicates."""
    command = [python, "-c", DATATROVE, source, folder]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, seconds, removed = output.strip().splitlines()[-1].split()
    return float(seconds), int(removed)


def main() -> None:
    """Prints the speeds and the ratios."""
    folder = sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_paths()["stdlib"]
    texts = read_texts(folder)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, float] = {}
    removed: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        source.mkdir()
        # datatrove reads JSON lines; the other sides take the texts from memory.
        lines = [json.dumps({"text": text, "id": str(n)}) for n, text in enumerate(texts)]
        (source / "texts.jsonl").write_text("\n".join(lines))
        run_prepare(texts[:10], f"{work}/warm")  # imports Beam
        # The sides take turns, so that a change in the machine's load does not favour one of them.
        for turn in range(TURNS):
            results = {"prepare": run_prepare(texts, f"{work}/prepare{turn}")}
            results["datasketch"] = run_datasketch(texts)
            if len(sys.argv) > 2:
                output = f"{work}/datatrove{turn}"
                results["datatrove"] = run_datatrove(sys.argv[2], str(source), output)
            for name, (duration, count) in results.items():
                seconds[name] = seconds.get(name, 0) + duration
                removed[name] = count
    title = f"{len(texts):,} files, {megabytes:.1f} MB"
    table = Table("", "MB/s/core", "prepare is faster by", "duplicates", title=title)
    for name, duration in seconds.items():
        speed, ratio = TURNS * megabytes / duration, duration / seconds["prepare"]
        table.add_row(name, f"{speed:.2f}", f"{ratio:.2f}", f"{removed[name]:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
