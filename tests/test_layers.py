"""Packages import downward only: the order of the layers, lowest first."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

LIBRARY = "codellama_jax"
LAYERS = (
    "errors",
    "checked",
    "command_line",
    "config",
    "system",
    "sharding",
    "models",
    "tokenizers",
    "data",
    "sandbox",
    "checkpoints",
    "generation",
    "benchmarks",
    "alignment",
    "serving",
    "weights",
    "overrides",
    "training",
    "report",
    "probes",
    "runs",
    "compile",
    "cli",
    "__main__",
)
LARGEST_SHARE = 0.18  # of the library's lines, in one package


def layer_of(module: str) -> str:
    """Returns the part of the library that a module belongs to, "" for another library's."""
    names = module.split(".")
    return names[1] if names[0] == LIBRARY and len(names) > 1 else ""


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the modules or their members that code imports, inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def modules() -> list[Path]:
    return sorted((ROOT / LIBRARY).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_no_higher_one(layer):
    found = []
    for path in modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if layer_of(module) == layer:
            found.append(path)
            for name in imported(ast.parse(path.read_text("utf-8"))):
                lower = layer_of(name) or layer
                assert LAYERS.index(lower) <= LAYERS.index(layer), f"{module} imports {name}"
    assert found


def test_every_module_has_a_layer():
    for path in modules():
        parts = path.relative_to(ROOT / LIBRARY).with_suffix("").parts
        assert parts[0] in (*LAYERS, "__init__"), path


def test_no_package_holds_the_library():
    """A package is a folder of modules: a subpackage such as data/prepare counts for itself."""
    lines: Counter[Path] = Counter()
    for path in modules():
        lines[path.parent] += len(path.read_text("utf-8").splitlines())
    for folder, count in lines.items():
        assert count < LARGEST_SHARE * lines.total(), folder


def test_training_reads_documents_without_the_stages_that_prepare_them():
    """Of the modules directly in data/ only the one that prepares and caches a corpus has them."""
    importing = set()
    for path in sorted((ROOT / LIBRARY / "data").glob("*.py")):
        for name in imported(ast.parse(path.read_text("utf-8"))):
            if f"{name}.".startswith(f"{LIBRARY}.data.prepare."):
                importing.add(path.name)
    assert importing == {"builders.py"}


def test_inference_does_not_import_the_trainer():
    for path in modules():
        package = path.relative_to(ROOT / LIBRARY).parts[0]
        if package in ("generation", "benchmarks", "probes", "weights", "checkpoints", "serving"):
            names = imported(ast.parse(path.read_text("utf-8")))
            assert "training" not in map(layer_of, names), path
