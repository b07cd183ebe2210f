"""Kills a run with SIGKILL at random moments of a data stage, and compares the data.

    python -m tools.kill_data_stage EXPERIMENT RUN ARM STAGE [--kills 5]

RUN is a finished run of the experiment, and ARM/STAGE a data stage in it. A copy of the run without
that stage writes the data again, is killed as often, and must end with equal files.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from codellama_jax.command_line import run_command
from codellama_jax.data_stage import DataStage, define
from codellama_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LONGEST_WAIT = 1800.0  # seconds for one start


def main() -> None:
    """Kills and resumes the stage, and compares its files with those of the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("run", type=Path)
    parser.add_argument("arm")
    parser.add_argument("stage")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options, others = parser.parse_known_args()
    rng = random.Random(options.seed)
    undisturbed = options.run / options.arm / options.stage
    moments = kill_moments(undisturbed, options.kills, rng)
    total = lines_of(undisturbed)
    # Beside the run: the paths by which stages name equal ones of other runs are relative.
    with tempfile.TemporaryDirectory(dir=options.run.resolve().parent) as temporary:
        copy = Path(temporary)
        shutil.copytree(options.run, copy, symlinks=True, dirs_exist_ok=True)
        data = copy / options.arm / options.stage
        # The other stages stay, so that only the data stage runs again.
        shutil.rmtree(data)
        # The stages that read the data would be skipped; the others are not trained again.
        command = [sys.executable, ROOT / "launch.py", "run", options.experiment, "--out", copy]
        command += ["--arm", options.arm, *others]
        for number, moment in enumerate(moments, 1):
            # A random delay after the line: kills must also hit the moments between two lines.
            end_at(command, data, moment, rng.uniform(0, 2))
            print(f"kill {number}: {lines_of(data)} of {total} lines", flush=True)
        # The last start runs to its end.
        end_at(command, data, None, 0.0)
        different = [
            name
            for name, digest in digests(undisturbed).items()
            if digests(data).get(name) != digest
        ]
    if different:
        sys.exit(f"after {options.kills} kills these files differ: {', '.join(different)}")
    print(f"after {options.kills} kills all files are equal: {', '.join(digests(undisturbed))}")


def kill_moments(folder: Path, kills: int, rng: random.Random) -> list[int]:
    """Returns numbers of lines, in increasing order, at which a data stage is killed.

    Raises UserError for a folder that holds fewer lines, such as that of a stage that names an
    equal one.
    """
    total = lines_of(folder)
    if not 0 <= kills < total:
        allowed = f"at least 0 and less than the {total} lines of answers in {folder}"
        raise UserError(f"--kills is {kills}: it must be {allowed}; see done.json there")
    return sorted(rng.sample(range(1, total), kills))


def end_at(command: list, data: Path, moment: int | None, delay: float) -> None:
    """Starts the command and kills it once it has written the data up to a number of lines.

    It has then written at least one. Where `moment` is None, or the data are complete before, it is
    killed when they are complete. Exits if it ends itself with an error, or is too slow.
    """
    # A batch may have brought the last start beyond `moment`: this start would be killed before it
    # writes.
    least = max(moment or 0, lines_of(data) + 1)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + LONGEST_WAIT
        while process.poll() is None and time.monotonic() < end:
            is_due = moment is not None and lines_of(data) >= least
            if is_due or (data / "done.json").exists():
                time.sleep(delay)
                break
            time.sleep(0.05)
        is_late = time.monotonic() >= end
        # SIGKILL cannot be caught: nothing is saved or cleaned up, as when a machine fails.
        process.send_signal(signal.SIGKILL)
    if is_late or process.returncode not in (0, -signal.SIGKILL):
        problem = f"wrote no data in {LONGEST_WAIT:g} s" if is_late else "failed"
        sys.exit(f"the command {problem}: {' '.join(map(str, command))}")


def lines_of(folder: Path) -> int:
    """Returns the complete lines of the answers in a folder; the outputs are written at once."""
    define()
    outputs = {kind.output for kind in DataStage.kinds.values()}
    paths = [path for path in folder.glob("*.jsonl") if path.name not in outputs]
    return sum(path.read_bytes().count(b"\n") for path in paths)


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file by its name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


if __name__ == "__main__":
    run_command(main)
