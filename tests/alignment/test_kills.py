"""`self-instruct` and `rank`, killed at random moments, end with the folder of an undisturbed run.

By hand: `PYTHONPATH=.:tests python tests/alignment/test_kills.py KILLS SECONDS_PER_ANSWER`.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT

SERVER = Path(__file__).with_name("stand_in_server.py")
SELF = "--prompts 4 --questions 4 --solutions 3 --batch 4 --workers 1"
RANK = "--samples 2 --temperatures 0.2 0.8 --batch 4 --workers 1"


def start_server(delay):
    """Returns the process of a server and its URL."""
    server = subprocess.Popen(
        [sys.executable, str(SERVER), str(delay)], stdout=subprocess.PIPE, text=True
    )
    return server, f"http://127.0.0.1:{int(server.stdout.readline())}/v1"


def commands(url, folder, tasks):
    """Returns the arguments of both commands, by the name of their folder."""
    models = f"--student {url}#small --teacher {url}#big"
    return {
        "self": f"self-instruct {folder}/self --model {url}#big {SELF}".split(),
        "pairs": f"rank {folder}/pairs --tasks {tasks} {models} {RANK}".split(),
    }


def start(arguments):
    """Returns the process of a command."""
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(arguments):
    """Runs a command to its end."""
    process = start(arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def number_of_lines(folder):
    """Returns the number of complete lines in the files of a folder."""
    files = folder.glob("*.jsonl") if folder.exists() else []
    return sum(path.read_bytes().count(b"\n") for path in files)


def lines_of(folder):
    """Returns the sorted lines of each file: the order of batches may differ after a kill."""
    return {path.name: sorted(path.read_text().splitlines()) for path in folder.iterdir()}


def kill_and_compare(folder, kills, delay, seed=0):
    """Runs both commands undisturbed and killed; returns the lines of their files at each kill."""
    rng, report = random.Random(seed), {}
    server, url = start_server(delay)
    tasks = folder / "once" / "self" / "dataset.jsonl"
    try:
        undisturbed = commands(url, folder / "once", tasks)
        killed = commands(url, folder / "killed", tasks)
        for name in undisturbed:
            finish(undisturbed[name])
            total = number_of_lines(folder / "once" / name)
            counts = []
            # Moments by progress: a busy machine starts a process late.
            for target in sorted(rng.randint(1, total - 10) for _ in range(kills)):
                process = start(killed[name])
                while number_of_lines(folder / "killed" / name) < target:
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 4 * delay))
                process.kill()
                process.communicate()
                counts.append(number_of_lines(folder / "killed" / name))
            finish(killed[name])
            once, again = lines_of(folder / "once" / name), lines_of(folder / "killed" / name)
            assert once == again, name
            report[name] = (counts, total)
    finally:
        server.kill()
        server.wait()
    return report


@pytest.mark.slow
def test_a_killed_command_loses_and_doubles_nothing(tmp_path):
    report = kill_and_compare(tmp_path, kills=2, delay=0.0)
    for counts, total in report.values():
        assert counts[0] < total and total > 30


if __name__ == "__main__":
    import tempfile

    kills, delay = int(sys.argv[1]), float(sys.argv[2])
    report = kill_and_compare(Path(tempfile.mkdtemp()), kills, delay)
    for name, (counts, total) in report.items():
        print(f"{name}: lines at the kills {counts}, in the end {total}")
