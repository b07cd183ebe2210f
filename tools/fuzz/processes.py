"""Starts every verb of the command line in a process, with invalid arguments.

All must exit with 2. `JAX_PLATFORMS=cpu python -m tools.fuzz.processes` runs each command once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from codellama_jax.errors import UserError
from tools.fuzz.harness import ROOT, wrong_ending

LAUNCH = [sys.executable, str(ROOT / "launch.py")]
MODULE = [sys.executable, "-m", "codellama_jax"]
SECONDS = 60
# {folder} is a folder with a faulty config.json and a pipe named fifo.
WRONG = [
    [*LAUNCH],
    [*LAUNCH, ""],
    [*LAUNCH, "train", "quickstart"],
    [*LAUNCH, "plan"],
    [*LAUNCH, "plan", ""],
    [*LAUNCH, "plan", "x" * 5000],
    [*LAUNCH, "plan", "launch.py"],
    [*LAUNCH, "plan", "quickstart", "--scale", "\udcff"],
    [*LAUNCH, "plan", "quickstart", "--arm", "é\n"],
    [*LAUNCH, "plan", "quickstart", "--code.steps", "1" + "0" * 5000],
    [*LAUNCH, "plan", "quickstart", "--code.steps", "nan"],
    [*LAUNCH, "plan", "quickstart", "--code.data.seq-len=-1"],
    [*LAUNCH, "plan", "quickstart", ""],
    [*LAUNCH, "run", "quickstart", "--out", "launch.py"],
    [*LAUNCH, "run", "quickstart", "--out", "/dev/null/x"],
    [*LAUNCH, "run", "quickstart", "--out", "ftp://host/x"],
    [*LAUNCH, "run", "quickstart", "--cache", "/dev/null", "--out", "{folder}/out"],
    [*LAUNCH, "run", "quickstart", "--corpus.code", "{folder}", "--out", "{folder}/out"],
    [*LAUNCH, "run", "quickstart", "--tokenizer.path", "{folder}", "--out", "{folder}/out"],
    [*LAUNCH, "run", "quickstart", "--code.init", "run:{folder}", "--out", "{folder}/out"],
    [*LAUNCH, "run", "quickstart", "--code.init", "hf:/dev/null", "--out", "{folder}/out"],
    [*LAUNCH, "run", "quickstart", "--mesh", "fsdp=0", "--out", "{folder}/out"],
    [*LAUNCH, "compile", "quickstart", "--target", "v9:1x1"],
    [*LAUNCH, "compile", "quickstart", "--stage", "nothing"],
    [*LAUNCH, "compile", "quickstart", "--context", "-5"],
    [*MODULE],
    [*MODULE, ""],
    [*MODULE, "complete"],
    [*MODULE, "complete", "/dev/null", "x"],
    [*MODULE, "complete", "{folder}", "\udcff"],
    [*MODULE, "complete", "{folder}", "x", "--temperature", "nan"],
    [*MODULE, "complete", "{folder}", "x", "--stop", ""],
    [*MODULE, "complete", "{folder}", "x", "--max-new-tokens", "-1"],
    [*MODULE, "complete", "{folder}", "x", "--mesh.fsdp", "0"],
    [*MODULE, "infill", "{folder}", "{folder}"],
    [*MODULE, "infill", "{folder}", "/dev/null"],
    [*MODULE, "infill", "{folder}", "ftp://host/x"],
    [*MODULE, "infill", "{folder}", "x" * 5000],
    [*MODULE, "evaluate", "nothing", "--out", "{folder}/out", "--reference"],
    [*MODULE, "evaluate", "humaneval", "--out", "{folder}/out"],
    [*MODULE, "evaluate", "humaneval", "--data", "/dev/zero", "--out", "{folder}/o", "--reference"],
    [*MODULE, "evaluate", "humaneval", "--shots", "1e9", "--out", "{folder}/o", "--reference"],
    [*MODULE, "evaluate", "humaneval", "--out", "/dev/null/x", "--reference", "--data", "x"],
    [*MODULE, "evaluate", "mbpp", "--data", "{folder}/fifo", "--out", "{folder}/o", "--reference"],
    [*MODULE, "import", "{folder}", "{folder}/run"],
    [*MODULE, "import", "/dev/zero", "{folder}/run"],
    [*MODULE, "import", "{folder}", "{folder}/run", "--tokenizer", ""],
    [*MODULE, "export", "{folder}", "{folder}/x", "--to", "hf"],
    [*MODULE, "export", "{folder}", "{folder}/x", "--to", "gguf"],
    [*MODULE, "export", "{folder}", "{folder}/x", "--to", "meta", "--ranks", "0"],
    [*MODULE, "check", "{folder}"],
    [*MODULE, "check", "{folder}", "--integrity"],
    [*MODULE, "check", "{folder}", "--tokens", "-1"],
    [*MODULE, "check", "{folder}/fifo", "--against", "\udcff"],
]


def commands(rng: Random, folder: Path) -> Callable[[], object]:
    """An invalid command, which is run in a process."""
    prepare(folder, rng.choice(["", "{}", "[]", '{"model": 5}', "nul", "\0"]))
    words = rng.choice(WRONG)
    return lambda: run(words, folder)


def prepare(folder: Path, config: str) -> None:
    """Writes the files that the commands name."""
    (folder / "config.json").write_text(config)
    os.mkfifo(folder / "fifo")


def run(words: list[str], folder: Path) -> None:
    """Runs a command. Raises UserError if it ends as it must, otherwise AssertionError."""
    command = [word.replace("{folder}", str(folder)) for word in words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        # Bytes: an argument may hold surrogates, which stand for bytes that are not UTF-8.
        [os.fsencode(word) for word in command],
        cwd=ROOT,
        env=environment,
        # A command that reads its input would wait for the terminal.
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )
    stderr = done.stderr.decode(errors="replace")
    fault = wrong_ending(done.returncode, stderr)
    assert done.returncode == 2 and not fault, f"{command!a:.300} -> {done.returncode}: {fault}"
    # The harness expects a refused input, so that the error line is raised again as one.
    raise UserError(stderr.splitlines()[-1].removeprefix("error: "))


def main() -> int:
    """Runs every invalid command once, prints its time and error line, returns the exit code."""
    faults = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as top:
        folder = Path(top)
        prepare(folder, "{}")
        # One after the other in one folder: an earlier command must not make a later one succeed.
        for words in WRONG:
            begun = time.monotonic()
            try:
                run(words, folder)
            except UserError as error:
                line = str(error)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                faults += 1
                line = f"FAULT {error}"
            shown = " ".join([Path(words[0]).name, *words[1:]])
            print(f"{time.monotonic() - begun:5.1f} s  {shown!a:.150}\n         {line}", flush=True)
    print(f"{len(WRONG)} commands, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
