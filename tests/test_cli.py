"""The console script: every verb, from any folder; and the commands that README names."""

import importlib
import re
import sys
import tomllib

import pytest
from paths import ROOT

from codellama_jax import cli

VERBS = (
    "run",
    "plan",
    "compile",
    "complete",
    "infill",
    "evaluate",
    "import",
    "export",
    "check",
)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs `codellama-jax ARGS` in an empty folder; returns exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [cli.PROGRAM, *args])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_project_installs_the_script_and_all_that_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"][cli.PROGRAM].partition(":")
    assert getattr(importlib.import_module(module), function) is cli.main
    assert project["tool"]["setuptools"]["py-modules"] == ["launch"]
    assert "experiments*" in project["tool"]["setuptools"]["packages"]["find"]["include"]


def test_help_lists_every_verb(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_the_script(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert f"usage: codellama-jax {verb}" in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_is_described(command, verb):
    words = re.sub(r"[│\s]+", " ", command(verb, "--help")[1])
    words = re.sub(r"--mesh\.\w+ INT", "", words)  # described together, above them
    types = r"(?: [A-Z]+| \[[^]]*(?:\[[^]]*\])*\]| \{\S+)?"
    assert not re.findall(rf"(--[a-z][\w-]*{types} \((?:default|required))", words)
    assert "benchmark (required)" not in words


def test_a_plan_works_from_any_folder(command):
    code, out, _ = command("plan", "quickstart", "--code.steps", "77")
    assert code == 0 and " 77 " in out


@pytest.mark.parametrize("args", [(), ("plam", "x"), ("complete",), ("plan", "nowhere")])
def test_a_mistake_is_one_line_and_exit_code_2(command, args):
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


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


def test_every_command_in_readme_parses(command):
    """README's commands name verbs, experiments and options that exist."""
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^ {4,}(?:\.venv/bin/)?codellama-jax (.*?)(?: +#.*)?$", readme, re.M)
    assert len(lines) >= 10
    helps: dict[tuple[str, ...], str] = {}
    for line in lines:
        verb, *words = line.split()
        assert verb in VERBS, line
        options = [word for word in words if word.startswith("--")]
        named = (verb, words[0]) if verb in cli.EXPERIMENTS else (verb,)
        if options and named not in helps:
            _, helps[named], _ = command(*named, "--help")
        assert all(option in helps[named] for option in options), line
