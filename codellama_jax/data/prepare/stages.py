"""The stages of `prepare`: folders of part files that are kept, resumed and skipped when complete.

A stage writes one output for every part and, next to it, the counts of that part, which are written
last. So an output with counts is complete. After a kill the stage continues with the other parts.
The name of a stage's folder holds a hash of everything that decides its content: with other inputs
or options it is another folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from codellama_jax.data.prepare.parts import part_name
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.system.files import read_state, write_json
from codellama_jax.system.progress import Say, counted

READERS = 32  # files that the driver reads at once; most of the time it waits for the network
# The name of a folder that `prepare` makes and may delete: it must never match a user's own.
MADE = re.compile(r"(documents|duplicates|contamination|dataset|data)-[0-9a-f]{16}")
WATCH_SECONDS = 5.0  # between two looks at the number of complete parts


def fingerprint(*values: Any) -> str:
    """Returns a hash of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class StageFolder:
    """The output of one stage: `NAME-FINGERPRINT/part-000012.*`."""

    def __init__(self, work: epath.Path, name: str, key: str):
        self.name, self.key = name, key
        self.path = work / f"{name}-{key}"

    def output(self, number: int, kind: str = "parquet") -> epath.Path:
        """Returns the path of a part's output."""
        return self.path / part_name(number, kind)

    def counts(self, numbers: Iterable[int]) -> list[dict[str, Any] | None]:
        """Returns the counts of each part, None for a part that is not complete."""
        paths = [self.output(number, "json") for number in numbers]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read_state, paths))

    def is_done(self, number: int) -> bool:
        """Returns whether a part is complete."""
        return read_state(self.output(number, "json")) is not None

    def finish(self, number: int, counts: dict[str, Any]) -> None:
        """Marks a part as complete."""
        write_json(self.output(number, "json"), counts)


def run_stage(
    runner: Runner,
    stage: StageFolder,
    parts: dict[int, Any],
    work: Callable[[Any], None],
    print_line: Say,
) -> list[dict[str, Any]]:
    """Runs `work(part)` for every part that is not complete, and returns the counts of all parts.

    Args:
        runner: runs `work` on its workers.
        stage: the folder, in which `work` writes the output of a part and then calls `finish`.
        parts: the argument of `work` by part number.
        work: a picklable function.
        print_line: prints a line of progress.
    """
    counts = stage.counts(parts)
    # Resuming is per part: after a kill only the parts without counts are computed again.
    todo = [part for part, count in zip(parts.values(), counts) if count is None]
    if len(todo) < len(parts):
        done = len(parts) - len(todo)
        print_line(f"{stage.name}: {done:,} of {len(parts):,} parts are done already")
    with _progress(stage, len(parts), len(todo)):
        runner.map(work, todo)
    complete = []
    # Read from the files again, because `map` returns nothing: a part is complete if its counts
    # exist.
    for number, count in zip(parts, stage.counts(parts)):
        if count is None:
            raise RuntimeError(f"the runner did not complete part {number} of {stage.name}")
        complete.append(count)
    return complete


@contextlib.contextmanager
def _progress(stage: StageFolder, parts: int, todo: int) -> Iterator[None]:
    """Shows how many parts of a stage are complete, while the workers of a runner do them."""
    ended = threading.Event()

    def watch(add: Callable[[int], None]) -> None:
        done, is_last = parts - todo, False
        # Once more at the end: else the line would stay at the count of some seconds before.
        while not is_last:
            is_last = ended.wait(WATCH_SECONDS)
            names = stage.path.glob("part-*.json") if stage.path.exists() else ()
            complete = sum(1 for _ in names)
            add(complete - done)
            done = complete

    # One part is either not done or done.
    with counted(f"parts of {stage.name}", parts, parts - todo, quiet=parts == 1) as add:
        watcher = threading.Thread(target=watch, args=[add], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
