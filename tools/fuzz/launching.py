"""Inputs of launch.py: overrides, experiment files, configs of runs and stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from codellama_jax import cli
from codellama_jax.config import Experiment, Stage, from_dict, leaves, to_dict
from codellama_jax.report import plan
from codellama_jax.runs import experiment_file
from codellama_jax.system.files import read_json
from tools.fuzz import mutations

EXPERIMENT = '''"""A small experiment."""
from codellama_jax.config import *
from codellama_jax.models.llama.config import LlamaConfig

def experiment(scale: str = "toy") -> Experiment:
    model = LlamaConfig(64, 32, 2, 4, 2, 8, 64)
    data = DataConfig(16, 8, MixtureConfig(code=1.0), InfillingConfig(0.5))
    code = Stage(model, data, OptimizerConfig(1e-2, 2), steps=10, init="scratch")
    return Experiment("small", scale, {"main": {"code": code}}, TokenizerConfig(pieces=300))
'''
# Lines inserted into the experiment file.
LINES = [
    "raise SystemExit(3)",
    "raise SystemExit",
    "raise BaseException('x')",
    "raise Exception('a\\nb')",
    "raise ValueError('\\ud800')",
    "import nothing_of_this_name",
    "from codellama_jax import nothing",
    "def f(: pass",
    "x = 1\n\ty = 2",
    "1 / 0",
    "def f(): f()\nf()",
    "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
    "experiment = None",
    "experiment = 5",
    "experiment = lambda: None",
    "experiment = lambda scale='': None",
    "experiment = lambda scale='': {'arms': 5}",
    "experiment = lambda a, b: None",
    "async def experiment(scale=''): pass",
    "class experiment: pass",
    "finding = 5",
    "__doc__ = 5",
    "__doc__ = None",
    "__doc__ = ''",
    "__doc__ = '\\ud800'",
    "__file__ = None",
    "del experiment",
    "(" * 500 + ")" * 500,
    "x = " + "-" * 5000 + "1",
    "exec('1 +')",
    "assert False",
    "raise RecursionError",
    "raise MemoryError",
    "raise FileNotFoundError(2, 'No such file', 'x')",
    "raise BrokenPipeError",
    "raise StopIteration",
    "raise GeneratorExit",
    "raise __import__('codellama_jax.errors').errors.UserError('one\\ntwo lines')",
    "import sys; sys.exit('text')",
    "import codellama_jax.config as c; Stage = c.Model",
]
# Values of EXPERIMENT that are replaced by random ones.
VALUES = ["64", "32", "2,", "4,", '"small"', "scale,", '"main"', '"code"', "1.0", "300"]
FLAGS = ["--scale", "--arm", "--out", "--reuse", "--cache", "--stage", "--target", "--slices"]
FLAGS += ["--context", "--batch", "--fresh", "--traceback", "--no-fresh", "--search"]
FLAGS += ["--help", "-h"]
ODD = ["", "-", "--", "---", "=", "--=", "--code", "--code.", "--.steps", "--code.steps", "-1"]
ODD += ["--mesh", "fsdp=2,tensor=2", "a,b", "\udcff", "é", "x" * 3000, "--code.nothing", "None"]


@functools.cache
def small() -> Experiment:
    """Returns the experiment of EXPERIMENT."""
    names: dict[str, Any] = {}
    exec(EXPERIMENT, names)
    return names["experiment"]()


@functools.cache
def options() -> list[str]:
    """Returns the dotted names of the fields that can be overridden."""
    # Fields of a stage are overridden under the name of the stage, all others under their own.
    code = leaves({"code": to_dict(small().arms["main"]["code"])})
    rest = to_dict(small())
    for name in ("arms", "name", "scale"):
        del rest[name]
    return sorted({*code, *leaves(rest)})


def text_of(rng: Random) -> str:
    """Returns the text of a value on the command line."""
    good = [0, 1, 2, 4, 8, 0.5, 0.01, rng.randint(1, 3000), True, "none", "scratch", "psm"]
    # An argument of a process cannot contain NUL, and Python passes bytes as \udc80 to \udcff.
    text = str(mutations.value(rng) if rng.random() < 0.6 else rng.choice(good))
    return text.replace("\0", "").replace("\ud800", "\udcff")


def argument(rng: Random) -> list[str]:
    """Returns an option with a value, as one or two arguments, or an argument of another form."""
    kind = rng.random()
    if kind < 0.12:
        return [rng.choice([*ODD, text_of(rng)])]
    name = rng.choice(FLAGS) if kind < 0.3 else "--" + rng.choice(options()).replace("_", "-")
    # A misspelt option must be refused with the nearest name.
    if rng.random() < 0.03:
        name = name[:-1]
    form = rng.random()
    if form < 0.08:
        return [name]
    return [f"{name}={text_of(rng)}"] if form < 0.3 else [name, text_of(rng)]


def overrides(rng: Random, folder: Path) -> Callable[[], object]:
    """Overrides of a small experiment for each verb, which are parsed; `plan` also runs."""
    file = folder / "small.py"
    file.write_text(EXPERIMENT)
    odd = rng.choice(["", "Plan", "plans", "run plan"])
    verb = rng.choice(["plan", "plan", "plan", "run", "compile"]) if rng.random() < 0.95 else odd
    experiment = str(file) if rng.random() < 0.95 else text_of(rng)
    given = [verb, experiment]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        given += argument(rng)
    if rng.random() < 0.03:
        rng.shuffle(given)

    def call() -> None:
        start = cli.parse(given, "launch.py")
        # Only parsed for the other verbs, which would train or compile.
        if given[0] == "plan":
            start()

    return call


def experiments(rng: Random, folder: Path) -> Callable[[], object]:
    """An experiment file of a user, possibly damaged or misnamed, which is planned."""
    file = folder / (rng.choice(mutations.NAMES) if rng.random() < 0.2 else "own.py")
    kind, text = rng.random(), EXPERIMENT
    if kind < 0.5:
        place = rng.choice(["\ndef experiment", "    model =", "    return", ""])
        # The new line must have the indentation of its place: most syntax errors are alike.
        indent = " " * (len(place) - len(place.lstrip(" ")))
        line = "\n".join(indent + part for part in rng.choice(LINES).split("\n"))
        text = text.replace(place, f"\n{line}\n{place}", 1) if place else f"{text}\n{line}\n"
    elif kind < 0.8:
        old = rng.choice(VALUES)
        new = repr(mutations.value(rng))
        # repr() writes inf and nan as names that Python does not know.
        new = new.replace("inf", "float('inf')").replace("nan", "float('nan')")
        text = text.replace(old, f"{new}{',' if ',' in old else ''}", 1)
    data = text.encode(errors="surrogatepass")
    file.write_bytes(mutations.damaged(rng, data) if kind > 0.8 else data)
    if rng.random() < 0.1:
        mutations.replace_file(rng, file)
    odd = rng.choice([*mutations.TEXTS, str(folder), str(file)[:-3]])
    name = str(file) if rng.random() < 0.9 else odd
    scale = rng.choice(["", "", "toy", *mutations.TEXTS])

    def call() -> None:
        module = experiment_file.load_file(name)
        experiment = experiment_file.build(module, scale)
        plan.print_plan(experiment, experiment_file.claim_of(module))

    return call


def configs(rng: Random, folder: Path) -> Callable[[], object]:
    """A config.json of a run or stage, changed or damaged, which is read."""
    experiment = rng.random() < 0.6
    original = small() if experiment else small().arms["main"]["code"]
    document = mutations.mutate(rng, to_dict(original), most=2)
    file = folder / "config.json"
    file.write_bytes(mutations.json_bytes(rng, document))
    if rng.random() < 0.03:
        mutations.replace_file(rng, file)

    def call() -> None:
        # A config that is accepted must also be writable again, and planned.
        config = from_dict(Experiment if experiment else Stage, read_json(file))
        json.dumps(to_dict(config))
        if experiment:
            plan.print_plan(config, "a config")

    return call
