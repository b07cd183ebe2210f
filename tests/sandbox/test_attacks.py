"""Hostile programs in isolated mode.

None passes, nothing outside changes, no process survives the verdict, and the next program gets
the right verdict.
"""

import glob
import os
import signal
import socket
import tempfile
import threading
from pathlib import Path

import hostile
import pytest

from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, Program

TMP_MB, PROCESSES = 24, 24


@pytest.fixture(scope="module")
def executor():
    try:
        with Executor(
            workers=2, memory_mb=400, processes=PROCESSES, tmp_mb=TMP_MB, retry=False
        ) as made:
            yield made
    except UserError as error:
        pytest.skip(str(error))


def add(candidate, timeout=10.0, test=hostile.TEST):
    return Program(
        "add",
        "python",
        candidate + test + "\ncheck(add)\n",
        timeout,
        candidate=candidate,
        test=test,
        entry_point="add",
    )


def judged(executor, *programs):
    """Returns the verdicts in order, and checks that right programs around them pass."""
    right = add(hostile.RIGHT)
    verdicts = dict(executor.run([right, *programs, right, right]))
    assert [verdicts[i].status for i in (0, len(programs) + 1, len(programs) + 2)] == ["passed"] * 3
    return [verdicts[i + 1] for i in range(len(programs))]


def processes_of(uids):
    """Lists the processes on this machine that run under one of these uids."""
    folders = []
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            if os.stat(folder).st_uid in uids:
                folders.append(folder)
        except FileNotFoundError:
            continue
    return folders


def candidate_uids(executor):
    """Returns the uids of candidates and judges; none for an ordinary user, who has only one."""
    if os.geteuid() != 0:
        return set()
    uids = set()
    for worker in executor._slots:
        uids |= {worker._config.uid, worker._config.uid + 1}
    return uids


def left_behind(launchers):
    """Lists the temporary folders and the control groups of these workers."""
    groups = []
    for worker in launchers:
        pattern = f"/sys/fs/cgroup/**/codellama_jax-{worker.pid}"
        groups += glob.glob(pattern, recursive=True)
    return groups + glob.glob(f"{tempfile.gettempdir()}/codellama_jax-*")


def test_every_layer_is_on(executor):
    layers = dict(executor.layers)
    cgroup, uid = layers.pop("cgroup"), layers.pop("uid")
    assert all(layers.values())
    assert uid == (os.geteuid() == 0)
    assert not cgroup or os.geteuid() == 0


@pytest.mark.parametrize("name", hostile.FORGERS)
def test_no_forger_passes(executor, name):
    for verdict in judged(executor, add(hostile.FORGERS[name])):
        assert verdict.status in ("failed", "error", "crashed")


def test_no_message_breaks_the_judge(executor):
    programs = [add(hostile.frame(data)) for data in hostile.FRAMES.values()]
    for name, verdict in zip(hostile.FRAMES, judged(executor, *programs)):
        assert verdict.status in ("failed", "error", "crashed"), name
        assert "sandbox failed" not in verdict.detail, name


@pytest.fixture
def outside(tmp_path):
    """A file that every user may write, and sockets that every local process may connect to."""
    os.chmod(tmp_path, 0o777)
    victim = tmp_path / "victim"
    victim.write_text("intact")
    os.chmod(victim, 0o666)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        abstract = f"codellama_jax-test-{os.getpid()}"
        unix.bind("\0" + abstract)
        unix.listen()
        tcp.setblocking(False)
        unix.setblocking(False)
        yield {"victim": str(victim), "port": tcp.getsockname()[1], "abstract": abstract}
        for listener in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
    assert victim.read_text() == "intact"
    assert os.listdir(tmp_path) == ["victim"]


@pytest.mark.parametrize("name", hostile.ESCAPES)
def test_nothing_outside_is_in_reach(executor, name, outside, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    reported = add(hostile.REPORT + hostile.ESCAPES[name].format(**outside))
    # The second one's worker has judged these tests before.
    for verdict in judged(executor, reported, reported):
        assert (verdict.status, verdict.detail) == ("error", "Exception: []")


def test_signals_reach_nobody(executor):
    body = """
import os, posix, signal, ctypes
def add(a, b):
    libc = ctypes.CDLL(None)
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGSTOP, signal.SIGKILL]
    for pid in (-1, 0, 1, os.getppid(), *range(2, 60)):
        for number in numbers:
            if pid not in (os.getpid(), 0, -1):
                try: posix.kill(pid, number)
                except OSError: pass
                libc.kill(pid, number)
    libc.kill(-1, 9)
    return 0
"""
    before = [worker._process.pid for worker in executor._slots]
    [verdict] = judged(executor, add(body))
    assert verdict.status in ("failed", "crashed")
    assert before == [worker._process.pid for worker in executor._slots]


MEMORY = {
    "one object": "def add(a, b): return len(bytearray(2 << 30))",
    "growing": "def add(a, b):\n    x = []\n    while True: x.append(bytearray(1 << 20))",
    "a long answer": "def add(a, b): return [0] * 3_000_000",
    "mapped": (
        "import mmap\ndef add(a, b):\n    m = mmap.mmap(-1, 2 << 30)\n    m.write(b'x' * (2 << 30))"
    ),
}


def test_memory_is_bounded(executor):
    programs = [add(body, 20.0) for body in MEMORY.values()]
    for name, verdict in zip(MEMORY, judged(executor, *programs)):
        assert verdict.status in ("out_of_memory", "error"), name
    assert judged(executor, add(MEMORY["one object"]))[0].status == "out_of_memory"


def test_files_are_bounded_and_gone(executor):
    fill = """
import os
def add(a, b):
    written = 0
    for folder in ("/tmp", "/dev/shm", "/dev"):
        for i in range(10):
            try:
                with open(f"{folder}/file{i}", "wb", buffering=0) as file:
                    while True: written += file.write(bytes(1 << 20))
            except OSError: pass
    raise Exception(str(written >> 20))
"""
    look = (
        "import os\ndef add(a, b): "
        "raise Exception(repr(os.listdir('/tmp') + os.listdir('/dev/shm')))"
    )
    for verdict in judged(executor, add(fill), add(fill)):
        assert verdict.detail.startswith("Exception: "), verdict
        assert int(verdict.detail.split()[1]) <= 2 * TMP_MB, verdict
    for verdict in judged(executor, add(look), add(look)):
        assert verdict.detail == "Exception: []"


def test_floods_of_output_are_truncated(executor):
    streams = (
        "import os\ndef add(a, b):\n"
        "    for fd in [1, 2] * 100: os.write(fd, bytes(1 << 20))\n    return 0"
    )
    text = "def add(a, b): raise Exception('x' * (50 << 20))"
    kind = "def add(a, b): raise type('X' * (5 << 20), (Exception,), {})('x')"
    refuses = (
        "class E(Exception):\n    def __str__(self): import os; os._exit(0)\ndef add(a, b): raise E"
    )
    verdicts = judged(executor, add(streams, 10.0), add(text, 10.0), add(kind, 10.0), add(refuses))
    assert [verdict.status for verdict in verdicts] == ["failed", "error", "error", "crashed"]
    assert all(len(verdict.detail) < 5000 and not verdict.stdout for verdict in verdicts)


def test_crashes_are_reported_with_their_signal(executor):
    bodies = {
        9: "import os\ndef add(a, b): os.kill(os.getpid(), 9)",
        11: "import ctypes\ndef add(a, b): ctypes.string_at(0)",
        6: "import os\ndef add(a, b): os.abort()",
        15: "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
        40: "import os\nos.kill(os.getpid(), 40)",  # a real-time signal has no name
    }
    for number, verdict in zip(bodies, judged(executor, *map(add, bodies.values()))):
        assert (verdict.status, verdict.signal) == ("crashed", number)


LOOPS = {
    "computes": "def add(a, b):\n    while True: pass",
    "sleeps": "import time\ndef add(a, b): time.sleep(1000)",
    "ignores signals": """
import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.setitimer(signal.ITIMER_REAL, 0)
def add(a, b):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "at once": "while True: pass",
    "makes the test work": (
        "def add(a, b): return [0] * 3_000_000 + [1] if type(a) is list else 1 << (1 << 33)"
    ),
    "answers half": """
import os
def add(a, b):
    for fd in range(3, 50):
        try: os.write(fd, (100).to_bytes(8, 'little'))
        except OSError: pass
    while True: pass
""",
}


def test_endless_programs_end_on_time(executor):
    endless = [body for name, body in LOOPS.items() if name != "makes the test work"]
    verdicts = judged(executor, *[add(body, 0.6) for body in endless])
    assert [verdict.status for verdict in verdicts] == ["timeout"] * len(verdicts)
    assert all(verdict.seconds >= 0.6 for verdict in verdicts)
    assert judged(executor, add(LOOPS["makes the test work"], 2.0))[0].status != "passed"


def test_threads_recursion_input_and_prints_change_nothing(executor):
    thread = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
        + hostile.RIGHT
    )
    prints = "print('passed' * 1000)\ndef add(a, b):\n    print(a, b)\n    return a + b"
    reads = "def add(a, b):\n    try: input()\n    except EOFError: return a + b"
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b) + 1"
    verdicts = judged(executor, *[add(body, 8.0) for body in (thread, prints, reads, deep)])
    assert [verdict.status for verdict in verdicts[:3]] == ["passed"] * 3
    assert verdicts[3].status in ("crashed", "out_of_memory", "error", "timeout")


def test_two_samples_of_a_task_do_not_meet(executor):
    body = """
import os, time
open('/tmp/mine', 'x').write('{0}')
open('/dev/shm/mine', 'x').close()
time.sleep(0.3)
def add(a, b): return a + b if open('/tmp/mine').read() == '{0}' else 0
"""
    verdicts = judged(executor, *[add(body.format(i)) for i in range(4)])
    assert [verdict.status for verdict in verdicts] == ["passed"] * 4


def test_nothing_is_left():
    with Executor(workers=2) as executor:
        bodies = [*LOOPS.values(), *hostile.FORGERS.values()]
        judged(executor, *[add(body, 0.3) for body in bodies])
        uids = candidate_uids(executor)
        launchers = [worker._process for worker in executor._slots]
        assert not processes_of(uids)
    assert all(launcher.returncode == 0 for launcher in launchers)
    assert not left_behind(launchers)


def test_a_closed_executor_ends_running_programs():
    """Neither a caller that stops iterating nor `close` waits for endless programs.

    A new run after it gets the right verdicts.
    """
    endless = add("while True: pass", 1000.0)
    with Executor(workers=2) as executor:
        running = executor.run([add(hostile.RIGHT), endless, endless])
        assert next(running)[0] == 0
        running.close()
        assert not processes_of(candidate_uids(executor))
        assert [verdict.status for _, verdict in executor.run([add(hostile.RIGHT)] * 3)] == [
            "passed"
        ] * 3
        running = executor.run([add(hostile.RIGHT), endless, endless])
        next(running)
        executor.close()
        assert not processes_of(candidate_uids(executor))


def test_a_killed_worker_is_replaced():
    with Executor(workers=1) as executor:
        for program, expected in (
            (add(hostile.RIGHT), "passed"),
            (add("while True: pass", 1000.0), "error"),
        ):
            launcher = executor._slots[0]._process.pid
            [supervisor] = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            killer = threading.Timer(
                0.3 if expected == "error" else 0.0, os.kill, (int(supervisor), signal.SIGKILL)
            )
            killer.start()
            if expected == "passed":
                os.waitid(os.P_PID, launcher, os.WEXITED | os.WNOWAIT)
            assert [
                verdict.status for _, verdict in executor.run([program, add(hostile.RIGHT)])
            ] == [expected, "passed"]
            killer.join()
