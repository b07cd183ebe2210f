"""Scripts of speed/ and tools/, which mypy does not check: what they use of the project exists."""

import ast
import importlib
import types

import pytest
from paths import ROOT

SCRIPTS = sorted([*(ROOT / "speed").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
PACKAGES = ("codellama_jax", "kernels", "experiments")


def imported(node: ast.ImportFrom) -> dict:
    """Returns what a statement imports, by its name in the script."""
    module = importlib.import_module(node.module)
    values = {}
    for alias in node.names:
        if not hasattr(module, alias.name):
            importlib.import_module(f"{node.module}.{alias.name}")
        values[alias.asname or alias.name] = getattr(module, alias.name)
    return values


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_the_project_exists(path):
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    values = {}
    for node in nodes:
        is_import = isinstance(node, ast.ImportFrom) and node.module
        if is_import and node.module.split(".")[0] in PACKAGES:
            values |= imported(node)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = values.get(node.value.id)
            if isinstance(module, types.ModuleType):
                assert hasattr(module, node.attr), f"line {node.lineno}: {node.attr}"
