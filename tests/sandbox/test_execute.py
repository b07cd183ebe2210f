"""The executor: verdicts of right and wrong programs.

In every language that is installed, in both modes of Python, and on machines that cannot isolate.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
from paths import DATA, ROOT

from codellama_jax.benchmarks.pass_at_k import estimate
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, Program, languages

NOBODY = 65534

# language -> (right, wrong, ends with status 0 before the tests)
PROGRAMS = {
    "python": (
        "assert abs(-1) == 1\n",
        "assert 0\n",
        "import sys\ndef f(): sys.exit(0)\nassert f() == 1\n",
    ),
    "cpp": (
        "#include <cassert>\nint f() { return 1; }\nint main() {\n  assert(f() == 1);\n}\n",
        "#include <cassert>\nint main() {\n  assert(0 == 1);\n}\n",
        "#include <cstdlib>\nint f() { exit(0); }\nint main() {\n  if (f() != 1) return 1;\n"
        "  return 0;\n}\n",
    ),
    "java": (
        "class Problem { static int f() { return 1; }\n"
        "public static void main(String[] args) { assert(f() == 1); }\n}\n",
        "class Problem { public static void main(String[] args) { assert(0 == 1); }\n}\n",
        "class Problem { static int f() { System.exit(0); return 0; }\n"
        "public static void main(String[] args) { assert(f() == 1); }\n}\n",
    ),
    "php": (
        "<?php\nif (abs(-1) !== 1) { throw new Exception('x'); }\n",
        "<?php\nthrow new Exception('Test failed!');\n",
        "<?php\nexit(0);\n",
    ),
    "ts": (
        "const f = (x: number): number => x + 1;\nif (f(1) !== 2) throw new Error('x');\n",
        "throw new Error('AssertionError');\n",
        "declare var process: any;\nprocess.exit(0);\n",
    ),
    "js": (
        "require('node:assert').deepEqual([1], [1]);\n",
        "require('node:assert').deepEqual([1], [2]);\n",
        "process.exit(0);\n",
    ),
    "cs": (
        "using System.Diagnostics;\n"
        "class P { public static void Main(string[] args) { Debug.Assert(1 == 1); }\n}\n",
        "using System.Diagnostics;\n"
        "class P { public static void Main(string[] args) { Debug.Assert(0 == 1); }\n}\n",
        "class P { public static void Main(string[] args) { System.Environment.Exit(0); }\n}\n",
    ),
    "sh": (
        "set -e\nrun_test() { [[ $(echo 1) = 1 ]]; }\nrun_test\n",
        "set -e\nrun_test() { [[ 1 = 2 ]]; }\nrun_test\n",
        "exit 0\n",
    ),
    "go": (
        'package main\nimport "testing"\n'
        'func TestF(t *testing.T) {\n  if 1 != 1 { t.Errorf("x") }\n}\n',
        'package main\nimport "testing"\nfunc TestF(t *testing.T) {\n  t.Errorf("x")\n}\n',
        'package main\nimport ("testing"; "os")\nfunc init() { os.Exit(0) }\n'
        'func TestF(t *testing.T) {\n  t.Errorf("x")\n}\n',
    ),
}


def executor(**options):
    try:
        return Executor(workers=2, **options)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compatible():
    with executor(mode="compatible") as made:
        yield made


@pytest.fixture(scope="module")
def isolated():
    with executor() as made:
        yield made


def statuses(pool, programs):
    verdicts = dict(pool.run(programs))
    return [verdicts[i].status for i in range(len(verdicts))]


def needs(language):
    try:
        languages.require(language)
    except UserError as error:
        pytest.skip(str(error))


def isolated_program(candidate, test, **more):
    return Program("t", "python", "", 10.0, candidate=candidate, test=test, **more)


@pytest.mark.parametrize("language", PROGRAMS)
def test_every_language_is_judged(compatible, language):
    needs(language)
    programs = [Program(language, language, code, 30.0) for code in PROGRAMS[language]]
    assert statuses(compatible, programs) == ["passed", "failed", "failed"]


# Programs that end before their tests, which they print instead: in PHP all that follows `?>` is
# output, and in Bash all that follows an open here-document is its text.
PRINTING = {
    "php": "<?php\nfunction f() { return 1; } ?>\nif (f() !== 2) { throw new Exception('x'); }\n",
    "sh": "f() {\n  echo 1\n}\ncat <<END\n[[ $(f) = 2 ]]\n",
    "js": "console.log(require('fs').readFileSync('main.js', 'utf8'));\nprocess.exit(0);\n",
}


@pytest.mark.parametrize("language", PRINTING)
def test_a_program_that_prints_its_tests_does_not_pass(compatible, language):
    needs(language)
    [(_, verdict)] = compatible.run([Program("p", language, PRINTING[language], 30.0)])
    assert (verdict.status, verdict.detail) == ("failed", "ended before its tests were done")


def test_a_compiler_error_and_a_crash_of_a_binary(compatible):
    needs("cpp")
    codes = (
        "int main() { return x; }",
        "int main() { *(volatile int*)0 = 1; }",
        "#include <vector>\nint main() { std::vector<char> v(1L << 40); }",
    )
    verdicts = dict(compatible.run([Program("c", "cpp", code) for code in codes]))
    broken, crashed, memory = (verdicts[i] for i in range(3))
    assert broken.status == "error"
    assert "was not declared" in broken.detail
    assert (crashed.status, crashed.signal) == ("crashed", 11)
    assert memory.status == "out_of_memory"


def test_a_missing_library_is_named(compatible, monkeypatch):
    needs("sh")
    monkeypatch.setitem(
        languages.LIBRARIES, "no-such-library", (("/nowhere",), "npm install -g no-such-library")
    )
    [(_, verdict)] = compatible.run([Program("s", "sh", "no-such-library\n")])
    assert verdict.detail.startswith("npm install -g no-such-library: ")


def test_nothing_of_a_shell_program_survives(compatible):
    daemon = (
        "for i in $(seq 20); do (setsid sleep 4321 &) ; done\n(trap '' TERM HUP; sleep 4321) &\n"
    )
    loop = daemon + "trap '' TERM INT HUP\nwhile true; do :; done\n"
    assert (
        statuses(compatible, [Program("s", "sh", daemon, 5.0), Program("s", "sh", loop, 0.5)])[1]
        == "timeout"
    )
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"4321" not in cmdline.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue


def test_processes_and_their_memory_are_bounded_together():
    needs("cpp")
    code = """
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/wait.h>
int main() {
  int started = 0, killed = 0, status;
  for (int i = 0; i < 100; i++) {
    int pid = fork();
    if (!pid) { if (i < 20) memset(malloc(15 << 20), 1, 15 << 20); sleep(1); _exit(0); }
    if (pid > 0) started++;
  }
  while (wait(&status) > 0) killed += WIFSIGNALED(status);
  printf("%d %d", started, killed);
}
"""
    with executor(mode="compatible", memory_mb=200) as small:
        [(_, verdict)] = small.run([Program("f", "cpp", code, 15.0, rule="output")])
        layers = small.layers
    if verdict.status == "passed":
        started, killed = map(int, verdict.stdout.split())
        assert started < 64
        assert killed or not layers["cgroup"]
    else:
        assert verdict.status == "out_of_memory"


def test_a_shell_program_sees_only_itself(compatible, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    code = (
        "env; cat /proc/1/environ /proc/1/mem; ls /proc | grep -c '^[0-9]'; "
        "ls -A / /.closed /home; cat /etc/shadow; touch /usr/x\n"
    )
    [(_, verdict)] = compatible.run([Program("s", "sh", code, rule="output")])
    assert "SECRET" not in verdict.stdout
    assert "root:" not in verdict.stdout
    listing = dict(
        part.split(":\n", 1)
        for part in ("\n/:" + verdict.stdout.split("\n/:")[1]).strip("\n").split("\n\n")
    )
    # The interpreter or a cache may be in the user's home.
    binds = [bind for bind in compatible._config.binds if bind.startswith("/home/")]
    visible = {bind.split("/")[2] for bind in binds}
    assert "home" not in listing["/"].split() or visible
    assert set(listing.get("/home", "").split()) <= visible
    assert int(verdict.stdout.split("\n/:")[0].splitlines()[-1]) < 8


def test_output_is_judged_by_the_caller(compatible):
    echo = (
        "import sys\nif __name__ == '__main__':\n"
        "    print(sum(map(int, sys.stdin)))\n    sys.exit()\n"
    )
    flood = "import sys\nfor i in range(100): sys.stdout.write('x' * (1 << 20))"
    programs = [
        Program("o", "python", echo, stdin="1\n2\n", rule="output"),
        Program("o", "python", flood, 20.0, rule="output"),
    ]
    (_, first), (_, second) = sorted(compatible.run(programs))
    assert (first.status, first.stdout) == ("passed", "3\n")
    assert (second.status, len(second.stdout)) == ("passed", 1 << 20)


def test_a_program_ends_itself_with_exit_or_quit(compatible):
    codes = ("print(3)\nexit()\nprint(4)\n", "print(3)\nquit(0)\n", "print(3)\nexit('wrong')\n")
    programs = [Program("o", "python", code, rule="output") for code in codes]
    verdicts = [verdict for _, verdict in sorted(compatible.run(programs))]
    assert [verdict.status for verdict in verdicts[:2]] == ["passed", "passed"]
    assert [verdict.stdout for verdict in verdicts] == ["3\n", "3\n", "3\n"]
    assert verdicts[2].status != "passed"


def test_printing_fails_under_humaneval_x_rule_for_javascript(compatible):
    needs("js")
    codes = ("let x = 1;", "console.log(1);", "console.error(1);")
    assert statuses(compatible, [Program("j", "js", code, 10.0, rule="js") for code in codes]) == [
        "passed",
        "failed",
        "failed",
    ]


def test_helpers_come_from_the_prompt_alone(isolated):
    prompt = "def helper(x):\n    return x * 2\n\n\ndef f(x):\n    '''Halves.'''\n"
    test = "def check(candidate):\n    assert candidate(helper(3)) == 3\n"
    right, fooled = "    return x // 2\n", "    return 3\ndef helper(x):\n    return 3\n"
    truncated = prompt + "    return (x"  # as infilling prompts end
    programs = [
        isolated_program(prompt + body, test, entry_point="f", prompt=prompt)
        for body in (right, "    return x\n", fooled)
    ]
    programs.append(isolated_program(prompt + right, test, entry_point="f", prompt=truncated))
    programs.append(
        isolated_program(
            prompt + fooled,
            test.replace("== 3", "== 3 and helper(1) == 2"),
            entry_point="f",
            prompt=prompt,
        )
    )
    assert statuses(isolated, programs) == ["passed", "failed", "passed", "passed", "passed"]


def test_objects_stay_with_the_candidate(isolated):
    node = "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
    node += "def last(n):\n    while n.next: n = n.next\n    return n.v\n"
    node += "def me(n): return n\ndef boom(): raise KeyError('k')\n"
    node += "def gen(n): yield from range(n)\nSIZE = 3\nimport math\n"
    test = """
n = Node(1)
n.next = Node(2)
assert last(n) == 2 and n.next.v == 2 and me(n) is not None and me(n) == n and Node(1) != Node(1)
assert list(gen(3)) == [0, 1, 2] and SIZE == 3 and math.floor(1.5) == 1
try:
    boom()
    assert False
except KeyError as error:
    assert "k" in str(error)
"""
    hidden = ("def sum(a, b): return a + b + 1", "assert sum([1, 2]) == 3")
    own = ("def sum(a, b): return a + b", "assert sum(1, 2) == 3")
    programs = [
        isolated_program(node, test),
        isolated_program(*hidden),
        isolated_program(*own, entry_point="sum"),
    ]
    assert statuses(isolated, programs) == ["passed"] * 3


def test_bad_input_is_one_line(compatible, monkeypatch):
    with pytest.raises(UserError, match="no language cobol"):
        next(compatible.run([Program("t", "cobol", "")]))
    with pytest.raises(UserError, match="mode must be isolated or compatible"):
        Executor(mode="fast")
    with pytest.raises(UserError, match=r"no file .*nothing\.jar"):
        Executor(jars=("nothing.jar",))
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    for language, package in {
        "php": "php-cli",
        "ts": "nodejs",
        "cs": "mono-mcs",
        "go": "golang-go",
        "java": "default-jdk-headless",
    }.items():
        with pytest.raises(UserError, match=f"apt-get install {package}"):
            next(compatible.run([Program("t", language, "")]))


SCRIPT = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import hostile, json
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, Program
from codellama_jax.system import linux
def add(code):
    parts = dict(candidate=code, test=hostile.TEST, entry_point="add")
    return Program("add", "python", code + hostile.TEST + "check(add)", 5.0, **parts)
"""


def in_process(python, body, **options):
    script = SCRIPT.format(root=str(ROOT), tests=str(Path(__file__).parent)) + body
    done = subprocess.run(
        [python, "-B", "-c", script], capture_output=True, text=True, cwd="/", **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_machine_that_cannot_isolate_is_refused():
    """Under a filter that forbids namespaces, as in most containers."""
    body = """
linux.seccomp(linux.NO_MOUNTS)
try:
    Executor(1)
    message = ""
except UserError as error:
    message = str(error)
with Executor(1, allow_unsafe=True) as executor:
    home = Program("s", "sh", "echo $HOME", rule="output")
    programs = [add(hostile.RIGHT), add("def add(a, b): return 0"), home]
    verdicts = dict(executor.run(programs))
    result = [message, executor.layers["namespaces"]]
    result += [verdicts[0].status, verdicts[1].status, verdicts[2].stdout]
    result.append(executor._slots[0]._process.pid)
print(json.dumps(result))
"""
    message, namespaces, right, wrong, home, launcher = in_process(sys.executable, body)
    assert "--allow-unsafe" in message
    assert "namespaces" in message
    assert "\n" not in message
    assert (namespaces, right, wrong) == (False, "passed", "failed")
    assert home.strip().endswith("/work")
    assert not os.path.exists(home.strip())
    assert not list(Path("/sys/fs/cgroup").glob(f"*/codellama_jax-{launcher}"))


def test_an_ordinary_user_is_as_safe():
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            command = [python, "-c", check]
            done = subprocess.run(command, capture_output=True, cwd="/", env={}, **options)
            if done.returncode == 0:
                break
        except OSError:
            continue
    else:
        pytest.skip("no Python 3.11 that an ordinary user can run")
    body = """
outside = dict(victim="/etc/passwd", port=9, abstract="x")
escapes = [hostile.REPORT + code.format(**outside) for code in hostile.ESCAPES.values()]
bodies = [hostile.RIGHT, *hostile.FORGERS.values(), *escapes, hostile.RIGHT]
with Executor(2, memory_mb=400, tmp_mb=16) as executor:
    verdicts = dict(executor.run(map(add, bodies)))
    ordered = [verdicts[i] for i in range(len(verdicts))]
    print(json.dumps([executor.layers, [[v.status, v.detail] for v in ordered]]))
"""
    layers, verdicts = in_process(python, body, env={"SECRET": "secret"}, **options)
    assert {name for name, on in layers.items() if not on} == {"uid", "cgroup"}
    assert verdicts[0][0] == verdicts[-1][0] == "passed"
    assert "passed" not in [status for status, _ in verdicts[1:-1]]
    for _, detail in verdicts[-1 - len(hostile.ESCAPES) : -1]:
        assert detail == "Exception: []"


def test_canonical_solutions_pass_in_isolated_mode(isolated):
    path = DATA / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("needs the published files")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    programs = []
    for record in records:
        candidate = record["prompt"] + record["canonical_solution"]
        fields = {name: record[name] for name in ("prompt", "test", "entry_point")}
        programs.append(isolated_program(candidate, **fields))
    assert statuses(isolated, programs) == ["passed"] * 164


@pytest.mark.parametrize("mode", ["isolated", "compatible"])
def test_the_public_harness_example_samples(mode, request):
    """Half of the six samples pass there: pass@1 = 0.5."""
    folder = DATA / "humaneval"
    if not folder.exists():
        pytest.skip("needs the published files")
    problem = json.loads((folder / "example_problem.jsonl").read_text())
    candidates = [
        problem["prompt"] + json.loads(line)["completion"]
        for line in (folder / "example_samples.jsonl").read_text().splitlines()
    ]
    rest = {name: problem[name] for name in ("test", "entry_point", "prompt")}
    end = f"\n{rest['test']}\ncheck({rest['entry_point']})\n"
    programs = [
        Program("test/0", "python", candidate + end, 0.5, candidate=candidate, **rest)
        for candidate in candidates
    ]
    passed = statuses(request.getfixturevalue(mode), programs).count("passed")
    assert estimate([(len(programs), passed)], 1).mean == pytest.approx(0.5, abs=1e-12)


ADD_TEST = "def check(add):\n    assert add(1, 2) == 3\n"


def add_program(candidate, timeout):
    code = f"{candidate}\n{ADD_TEST}check(add)\n"
    return Program(
        "t", "python", code, timeout, candidate=candidate, test=ADD_TEST, entry_point="add"
    )


@pytest.mark.parametrize("mode", ["isolated", "compatible"])
def test_waiting_for_a_processor_is_no_timeout(mode, request):
    """A program that sleeps longer than its limit, within the generous wall limit, passes."""
    pool = request.getfixturevalue(mode)
    waits = "import time\ndef add(a, b):\n    time.sleep(1.5)\n    return a + b\n"
    assert statuses(pool, [add_program(waits, 1.0)]) == ["passed"]


@pytest.mark.parametrize("mode", ["isolated", "compatible"])
def test_processor_time_is_limited(mode, request):
    """An endless loop ends by its processor time, before the wall limit of four times that."""
    pool = request.getfixturevalue(mode)
    retried = pool.machine()["retried"]
    [(_, verdict)] = pool.run([add_program("def add(a, b):\n    while True: pass\n", 1.0)])
    assert (verdict.status, verdict.detail, verdict.signal) == ("timeout", "", 0)
    machine = pool.machine()
    assert machine["retried"] == retried + 1
    assert 0 < machine["speed"] <= machine["processor speed"] * 1.5 < 50


def test_a_timeout_is_retried_once_alone(isolated, monkeypatch):
    """As on a machine that was busy: the first run is late; the second is not, and counts."""
    worker = type(isolated._slots[0])
    start, started = worker.start, []

    def late_at_first(self, program, mode, seconds, wall, job):
        first = program.timeout == 5.0 and not started.count(5.0)
        started.append(program.timeout)
        start(self, program, mode, seconds, 0.01 if first else wall, job)

    before = isolated.machine()
    monkeypatch.setattr(worker, "start", late_at_first)
    waits = "import time\ndef add(a, b):\n    time.sleep(0.2)\n    return a + b\n"
    quick = "def add(a, b): return a + b\n"
    programs = [add_program(waits, 5.0), add_program(quick, 6.0), add_program(quick, 7.0)]
    verdicts = list(isolated.run(programs))
    assert [verdict.status for _, verdict in verdicts] == ["passed"] * 3
    assert verdicts[-1][0] == 0 and started[-1] == 5.0  # last, when nothing else runs
    after = isolated.machine()
    assert after["retried"] == before["retried"] + 1
    assert after["retried and finished"] == before["retried and finished"] + 1
