"""Codex-S: traced functions become problems that a model must solve; a kill changes nothing."""

import json

import pytest

from codellama_jax.alignment.answers import Failure
from codellama_jax.alignment.codex_command import TraceFunctions
from codellama_jax.alignment.codex_s import DATASET, TRACED, CodexS, make_dataset
from codellama_jax.alignment.commands import SamplingOptions
from codellama_jax.alignment.projects import read_project
from codellama_jax.data.prepare.readers.conversations import canonical_text, columns_of
from codellama_jax.errors import UserError
from codellama_jax.sandbox.executor import Executor

MODULE = '''import random

SEEN = []


def double(x, times=2):
    """Returns the number times another one."""
    return x * times


def factorial(n):
    """Returns the product of the first numbers."""
    return 1 if n < 2 else n * factorial(n - 1)


def inverse(x):
    """Returns one over x, None for zero."""
    return 1 / x if x else None


def draw(top):
    """Returns a random number."""
    return random.randrange(top)


def remember(x):
    """Returns how many values were remembered."""
    SEEN.append(x)
    return len(SEEN)


def first_seen(x):
    """Returns whether it is the first value."""
    SEEN.append(x)
    return SEEN[0] is x


def shout(text):
    """Prints a text."""
    print(text)


def opened(file):
    """Reads a file."""
    return file.read()


def unused(x):
    """Is never called."""
    return x
'''
TESTS = """import io, unittest
from package import module


class Test(unittest.TestCase):
    def test_all(self):
        for number in range(4):
            module.double(number)
            module.double(number, times=3)
            module.remember("x")
            module.shout("x")
            module.draw(10**9)
        self.assertEqual(module.factorial(3), 6)
        self.assertIsNone(module.inverse(0))
        self.assertEqual(module.inverse(4), 0.25)
        with self.assertRaises(TypeError):
            module.inverse("x")
        module.first_seen("again")
        module.opened(io.StringIO("x"))
"""
PARAMS = CodexS(samples=4, repeats=2, batch=3)
SOLUTIONS = {
    "double": ["    return x\n", "    return times * x\n"],
    "factorial": ["    return (\n", "    return m\n", "    return n\n"],
    "inverse": ["    return x and 1 / x or None\n"],
}


class Model:
    """Continues prompts from a table; the last solution of a function repeats."""

    def __init__(self, most=1_000):
        self.names, self.most = [], most

    def __call__(self, requests, at_once):
        for index, request in enumerate(requests):
            if index % at_once == 0 and len(self.names) >= self.most:
                raise KeyboardInterrupt
            self.names.append(request.name)
            yield index, self.answer(request)

    def answer(self, request):
        name = request.prompt.rpartition("def ")[2].partition("(")[0]
        number = int(request.name.split()[2])
        if (name, number) == ("factorial", 3):
            return Failure("answers 400 Bad Request")
        solutions = SOLUTIONS[name]
        return solutions[min(number, len(solutions) - 1)]


@pytest.fixture(scope="module")
def executor():
    with Executor(workers=2, retry=False) as workers:
        yield workers


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects") / "mine"
    (root / "package").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "package" / "__init__.py").write_text("")
    (root / "package" / "module.py").write_text(MODULE)
    (root / "tests" / "test_module.py").write_text(TESTS)
    return root


@pytest.fixture(scope="module")
def complete(executor, project, tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("complete"), Model()
    counts = make_dataset(model, executor, [read_project(project)], PARAMS, folder, {"by": "it"})
    return folder, counts, model


def dataset(folder):
    return [json.loads(line) for line in (folder / DATASET).read_text().splitlines()]


def test_the_counts_of_each_step(complete):
    _, counts, _ = complete
    assert (counts.projects, counts.test_files, counts.functions) == (1, 1, 9)
    assert (counts.problems, counts.called, counts.with_tests) == (9, 8, 4)
    assert (counts.stable, counts.kept) == (3, 2)
    assert counts.reasons == {
        "call: a value has no literal": 1,
        "call: equal arguments gave different results": 6,
        "call: it raised an exception": 1,
        "function: alone, its own tests end with failed": 1,
        "function: equal arguments gave different results": 2,
        "function: no call can be a test": 2,
        "function: no test calls it": 1,
        "model: no sample passes": 1,
        "sample: error": 1,
        "sample: failed": 2,
        "sample: the code does not parse": 1,
        "sample: the model answers 400 Bad Request": 1,
    }


def test_a_problem_has_the_calls_of_its_function_as_tests(complete):
    folder, _, _ = complete
    double, inverse = dataset(folder)
    assert double["task_id"] == "mine/package/module.py:6"
    assert double["prompt"].startswith('def double(x, times=2):\n    """Returns')
    assert double["completion"] == "    return x * times\n"
    assert double["tests"][:3] == [
        "assert double(0, 2) == 0",
        "assert double(0, 3) == 0",
        "assert double(1, 2) == 2",
    ]
    assert (double["calls"], double["by"], double["seed"]) == (8, "it", 0)
    assert inverse["tests"] == ["assert inverse(0) == None", "assert inverse(4) == 0.25"]
    row = {name: double[name] for name in columns_of(tuple(double))}
    assert json.loads(canonical_text(row)) == row
    assert list(row) == ["prompt", "completion"]


def test_a_process_that_was_killed_continues(complete, executor, project, tmp_path):
    folder, counts, undisturbed = complete
    (tmp_path / TRACED).write_bytes((folder / TRACED).read_bytes())
    names = []
    for most in (1, 4):
        model = Model(most)
        with pytest.raises(KeyboardInterrupt):
            make_dataset(model, executor, [read_project(project)], PARAMS, tmp_path, {"by": "it"})
        names += model.names
    model = Model()
    projects = [read_project(project)]
    assert make_dataset(model, executor, projects, PARAMS, tmp_path, {"by": "it"}) == counts
    assert sorted(names + model.names) == sorted(undisturbed.names)
    for path in folder.iterdir():
        lines = (tmp_path / path.name).read_text().splitlines()
        assert sorted(lines) == sorted(path.read_text().splitlines()), path.name


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": ""}, "--samples 4: name the model"),
        ({"model": "x", "amounts": CodexS(samples=0)}, "pass --samples 0 without --model"),
        ({"projects": ("{}", "{}")}, "two folders of the same name"),
        ({"model": "http://127.0.0.1:1"}, "does not name a model"),
        ({"model": "gguf:/missing.gguf"}, "/missing.gguf"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, project, options, problem):
    fields = {"projects": ("{}",), "model": "run", "amounts": PARAMS, **options}
    fields["projects"] = tuple(path.format(project) for path in fields["projects"])
    with pytest.raises(UserError, match=problem):
        TraceFunctions(str(tmp_path / "out"), models=SamplingOptions(), **fields)()
    assert not (tmp_path / "out").exists()
