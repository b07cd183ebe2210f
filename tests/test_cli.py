"""Every verb, in each way to start it, from any folder; and the commands that README names."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from paths import ROOT

from codellama_jax import cli
from codellama_jax.command_line import SCRIPT

VERBS = tuple(cli.VERBS)
MODULE = "/somewhere/codellama_jax/__main__.py"
# The first argument that Python gives a program, and how the user started it.
STARTS = {"launch.py": "launch.py", MODULE: "python -m codellama_jax", f"/bin/{SCRIPT}": SCRIPT}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs a command line in an empty folder; returns exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, start: str = SCRIPT) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [start, *args])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_project_installs_the_script_and_all_that_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"][SCRIPT].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main
    assert "py-modules" not in project["tool"]["setuptools"]
    assert "experiments*" in project["tool"]["setuptools"]["packages"]["find"]["include"]


@pytest.mark.parametrize("start, program", STARTS.items())
def test_help_lists_every_verb_and_names_the_program(command, start, program):
    code, out, _ = command("--help", start=start)
    assert code == 0
    assert f"usage: {program} [-h] {{{','.join(VERBS)}}}" in out
    for verb in cli.VERBS.values():
        assert verb.summary.split()[0] in out


@pytest.mark.parametrize("start, program", STARTS.items())
def test_a_mistake_names_the_program(command, start, program):
    _, _, err = command("complete", start=start)
    assert f"see {program} complete --help" in err
    _, _, err = command("plan", "quickstart", "--foo", start=start)
    assert f"see {program} plan quickstart --help" in err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_the_program(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert f"usage: codellama-jax {verb}" in out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example_that_parses(command, verb):
    _, out, _ = command(verb, "--help", start="launch.py")
    [example] = re.findall(r"^Example: launch.py (.*)$", out, re.M)
    assert shlex.split(example)[0] == verb
    assert callable(cli.parse(shlex.split(example), "launch.py"))


@pytest.mark.parametrize("verb", ("run", "plan", "compile"))
def test_help_with_an_experiment_shows_the_example_and_the_claim_once(command, verb):
    code, out, _ = command(verb, "quickstart", "--help")
    assert code == 0
    assert out.count(f"Example: codellama-jax {verb} ") == 1
    assert "--long-context.optimizer.peak-lr" in out and "\nCost      " in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_described(command, verb):
    words = re.sub(r"[│\s]+", " ", command(verb, "--help")[1])
    words = re.sub(r"--mesh\.\w+ INT", "", words)  # described together, above them
    types = r"(?: [A-Z]+| \[[^]]*(?:\[[^]]*\])*\]| \{\S+)?"
    assert not re.findall(rf"(--[a-z][\w-]*{types} \((?:default|required))", words)
    assert "benchmark (required)" not in words


def test_help_texts_of_options_are_one_line():
    """tyro keeps the line breaks of a docstring, which then break the help at odd places."""
    for path in (ROOT / "codellama_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                for option, text in itertools.pairwise(node.body):
                    if isinstance(option, ast.AnnAssign) and isinstance(text, ast.Expr):
                        assert "\n" not in ast.unparse(text).strip(), (path, text.lineno)


def test_a_plan_works_from_any_folder(command):
    code, out, _ = command("plan", "quickstart", "--code.steps", "77")
    assert code == 0 and " 77 " in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "expected one of {run, plan, compile, prepare, complete, infill, chat,"),
        (("plam", "x"), "VERB is 'plam': it must be one of run, plan, .*; did you mean plan"),
        (("",), "VERB is '': it must be one of run, plan"),
        (("--foo",), "unrecognized option: --foo; .*see codellama-jax --help"),
        (
            ("complete",),
            "missing from codellama-jax complete: RUN .*PROMPT .*; see .* complete --help",
        ),
        (("complete", "r", "p", "--max-new-token", "3"), r"did you mean --max-new-tokens\?"),
        (("complete", "r", "p", "--mesh", "tensr=2"), r"did you mean --mesh.tensor\?"),
        (("evaluate", "humaneval", "--out", "o", "--shot", "3"), r"did you mean --shots\?"),
        (("self-instruct", "d", "--modle", "m"), r"did you mean --model\? missing from .*--model"),
        (("evaluate", "humaneval", "--ot=o"), r"option: --ot; did you mean --out\? missing from"),
        (("export", "r", "d", "--to", "tf"), "--to is 'tf': it must be one of hf, meta"),
        (("kernels", "flash"), "flash_attention"),
        (("kernels", "flash_attention", "--chip", "v9"), "--chip is 'v9': it must be one or"),
        (("plan", "nowhere"), "no experiment nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, args, message):
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize("start", ["launch.py", "-m codellama_jax"])
def test_help_in_a_process_imports_no_jax(start):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *start.split(), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "codellama_jax.cli" in imported
    assert not imported & {"jax", "flax", "optax", "orbax", "tensorflow", "torch"}


def test_hints_and_readme_install_extras_alike():
    readme = (ROOT / "README.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra in ("tpu", "gpu"):
        assert extra in extras and f"install -e '.[{extra}]'" in readme
    hints = []
    for folder in ("codellama_jax", "kernels", "speed"):
        for path in (ROOT / folder).rglob("*.py"):
            hints += re.findall(r"pip install [^\n]*\[\w+[^\n]*", path.read_text())
    assert len(hints) >= 2
    assert all(re.match(r"pip install -e '\.\[", hint) for hint in hints), hints


def test_every_command_in_readme_parses(monkeypatch, tmp_path):
    """README's commands name verbs, experiments and options that exist."""
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^ {4,}(?:\.venv/bin/)?python launch\.py (.*?)(?: +#.*)?$", readme, re.M)
    assert len(lines) >= 10
    for line in lines:
        arguments = shlex.split(line)
        if "--help" not in arguments:
            assert callable(cli.parse(arguments, "launch.py")), line


def test_run_folders_in_readme_have_the_default_scale():
    """Without --out and --scale `run EXPERIMENT` writes runs/EXPERIMENT-SCALE."""
    readme = (ROOT / "README.md").read_text()
    names = set(re.findall(r"\bruns/(\w+)-(\w+)", readme))
    assert ("quickstart", "toy") in names
    for name, scale in sorted(names):
        module = importlib.import_module(f"experiments.{name}")
        assert module.experiment().scale == scale, f"runs/{name}-{scale}"
