"""Measures the prose and the density of the code, and lists the places that break a rule.

`python -m tools.style` prints the table; `python -m tools.style PATH ...` also lists every place
under those paths, as FILE:LINE: TEXT: FIX. tests/test_style.py keeps the lists empty.
"""

from __future__ import annotations

import ast
import bisect
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("codellama_jax", "kernels", "experiments", "speed", "tools", "launch.py")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs")
GENERATED = ("docs/results", "docs/quickstart")  # reports of runs, written by an earlier version
COLUMNS = 100
UNITS = "nats|bits|bytes|tokens|seconds|sequences|rows|characters|lines|samples|FLOPs|GB|MB|ms"

# Words that newcomers did not understand, as a regular expression, and the field's term.
# A word that is right in another sense is left to the reader unless its context decides. Spaces are
# written \s, so that these strings are no prose themselves.
WORDS = (
    (r"cuts?|cutting", "shard, split; of a text: truncate, stop at"),
    (r"whole(?!\snumbers?\b)", "full, complete; of an array: replicated, unsharded"),
    (r"deal(s|t)|dealing", "striped"),
    (r"exchang(e|es|ed|ing)", "collective, communication"),
    (r"(?<!dot\s)(?<!outer\s)(?<!inner\s)products?", "matmul"),
    (r"words\sof\s(a|the)\svocabulary", "vocabulary entries"),
    (r"lies|lie", "is stored, is sharded over, is at"),
    (r"stands?(?!\sfor)(?!\salone)|stood", "is, is at, is stored"),
    (r"hangs?\son|hung\son", "depends on"),
    (r"(goes|go|going|gone|went)\son", "continues, resumes"),
    (r"at\shand", "available, exists"),
    (r"says?|said|saying|tells?|told", "reports, prints, raises, states"),
    (r"ask(s|ed)?(?!\sfor)", "evaluated, prompted"),
    (r"mend(s|ed|ing)?", "fix"),
    (r"likeliest", "most likely, argmax"),
    (r"chances?", "PRNG key, random seed, probability"),
    (r"hand(s|ed|ing)?\sout", "return, yield"),
    (r"in\sturn", "alternately, one after the other"),
    (r"of\s(its|their|his|one's|your)\sown", "separate, own"),
    (rf"({UNITS})\san?\s(token|second|step|sequence|line|file|document|device|core|task)", "per"),
)
PATTERNS = [(re.compile(rf"\b({word})\b", re.IGNORECASE), term) for word, term in WORDS]
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
# Names that do not describe what they hold.
EMPTY_NAMES = {"found", "some", "said", "there", "one", "at", "own", "wanted"}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Measure:
    """Counts of some files, and the places that break a rule as (line, text, fix)."""

    lines: int = 0
    long_lines: int = 0
    comment_lines: int = 0
    comprehensions: int = 0
    definitions: int = 0
    documented: int = 0
    docstring_words: int = 0
    whats: int = 0
    words: list[tuple[str, int, str, str]] = field(default_factory=list)
    undocumented: list[tuple[str, int, str, str]] = field(default_factory=list)
    names: list[tuple[str, int, str, str]] = field(default_factory=list)
    nested: list[tuple[str, int, str, str]] = field(default_factory=list)

    @property
    def places(self) -> list[tuple[str, int, str, str]]:
        """All places that break a rule, in the order of files and lines."""
        return sorted(self.words + self.undocumented + self.names + self.nested)

    def row(self, name: str) -> str:
        """Returns one row of the table."""
        thousand = 1_000 / max(1, self.lines)
        cells = [
            f"{name:28}",
            f"{self.lines:7,}",
            f"{100 * self.long_lines / max(1, self.lines):6.1f}",
            f"{100 * self.comment_lines / max(1, self.lines):9.1f}",
            f"{self.comprehensions * thousand:9.0f}",
            f"{1_000 * self.whats / max(1, self.docstring_words):6.1f}",
            f"{100 * self.documented / max(1, self.definitions):10.0f}",
            f"{len(self.places):7}",
        ]
        return " ".join(cells)


HEADER = (
    f"{'':28} {'lines':>7} {'>100%':>6} {'comment%':>9} {'compreh.':>9} {'what':>6}"
    f" {'docstring%':>10} {'places':>7}"
)
NOTES = (
    ">100%: lines over 100 columns. comment%: lines that hold a comment. compreh.: comprehensions",
    "per 1,000 lines. what: the word per 1,000 words of docstrings. docstring%: public definitions",
    "with a docstring. places: what `python -m tools.style PATH` lists.",
)


def python_files(paths: Sequence[str], root: Path = ROOT) -> list[Path]:
    """Returns the Python files under paths, which are relative to `root` or absolute."""
    files = []
    for path in paths:
        place = root / path
        files += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [file for file in files if file.suffix == ".py" and "__pycache__" not in file.parts]


def pages(root: Path = ROOT) -> list[Path]:
    """Returns the Markdown pages that people wrote, without the reports of runs."""
    files = []
    for path in PAGES:
        place = root / path
        files += sorted(place.rglob("*.md")) if place.is_dir() else [place]
    generated = tuple(str(root / folder) for folder in GENERATED)
    return [file for file in files if not str(file).startswith(generated)]


def words_of(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, word, term to use instead) of the words of a text that are on the list.

    Lines are counted from 0. A phrase may continue on the next line.
    """
    # Code in backticks keeps its names. Its line breaks stay, by which lines are counted.
    parts = re.split(r"(`[^`]*`)", text)
    parts[1::2] = ["`" + "\n" * code.count("\n") + "`" for code in parts[1::2]]
    starts, prose = [], ""
    for line in "".join(parts).splitlines():
        # One space in the place of a line break and an indentation, two in that of a blank line,
        # over which no phrase continues.
        starts.append(len(prose))
        prose += " ".join(line.split()) + " "
    for pattern, term in PATTERNS:
        for match in pattern.finditer(prose):
            yield bisect.bisect(starts, match.start()) - 1, match[0], term


def measure_files(files: Sequence[Path], root: Path = ROOT) -> Measure:
    """Measures Python files together."""
    total = Measure()
    # All files are parsed first: a method may be documented in a base class of another file.
    trees = {file: ast.parse(file.read_text()) for file in files}
    documented = _documented_methods(list(trees.values()))
    for file, tree in trees.items():
        name = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
        _measure_lines(total, name, file.read_text())
        _measure_tree(total, name, tree, documented)
    return total


def measure_page(file: Path, root: Path = ROOT) -> list[tuple[str, int, str, str]]:
    """Returns the places of a Markdown page, outside its code blocks."""
    prose = []
    is_code = False
    for line in file.read_text().splitlines():
        is_fence = line.lstrip().startswith("```")
        # Blank lines in the place of code keep the numbers of the others.
        prose.append("" if is_code or is_fence else line)
        is_code = is_code != is_fence
    places = []
    for line_index, word, term in words_of("\n".join(prose)):
        places.append((str(file.relative_to(root)), line_index + 1, word, term))
    return sorted(places)


def _measure_lines(total: Measure, name: str, text: str) -> None:
    lines = text.splitlines()
    total.lines += len(lines)
    total.long_lines += sum(len(line) > COLUMNS for line in lines)
    for first_line, comment in _comments(text):
        total.comment_lines += 1 + comment.count("\n")
        for line_index, word, term in words_of(comment):
            total.words.append((name, first_line + line_index, word, term))


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number of the first line and the text of each comment of a module.

    Comments on consecutive lines without code are one text.
    """
    first_line, is_open = 0, False
    lines: list[str] = []
    # Comments are tokens, not nodes of the syntax tree; a "#" in a string is no comment.
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        number = token.start[0]
        is_alone = token.line.lstrip().startswith("#")
        is_next = is_open and is_alone and first_line + len(lines) == number
        if lines and not is_next:
            yield first_line, "\n".join(lines)
            lines = []
        if not lines:
            first_line = number
        lines.append(token.string.lstrip("#"))
        # A comment after code describes its line alone.
        is_open = is_alone
    if lines:
        yield first_line, "\n".join(lines)


def _measure_tree(total: Measure, name: str, tree: ast.Module, documented: set[str]) -> None:
    # Docstrings are strings too: each string is read once.
    for node in ast.walk(tree):
        # Only strings with a space are prose: others are names, keys and formats.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for _, word, term in words_of(node.value):
                total.words.append((name, node.lineno, word, term))
        elif isinstance(node, COMPREHENSIONS):
            total.comprehensions += 1
            # ast.walk includes the node itself.
            inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
            if len(inner) > 1:
                total.nested.append((name, node.lineno, "comprehension in another", "use a loop"))
        elif isinstance(node, (ast.Module, *DEFINITIONS)):
            docstring = ast.get_docstring(node) or ""
            total.docstring_words += len(docstring.split())
            total.whats += len(WHAT.findall(docstring))
        # Names are checked where they are bound, so that each is reported once.
        for identifier in _bound_names(node):
            if identifier in EMPTY_NAMES:
                fix = "a noun for its value"
                total.names.append((name, getattr(node, "lineno", 1), identifier, fix))
    for definition, is_overriding in _public_definitions(tree, documented):
        total.definitions += 1
        if ast.get_docstring(definition) or is_overriding:
            total.documented += 1
        else:
            fix = "a docstring"
            total.undocumented.append((name, definition.lineno, definition.name, fix))


def _bound_names(node: ast.AST) -> Iterator[str]:
    """Yields the names that a node binds."""
    if isinstance(node, DEFINITIONS):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _public_definitions(
    tree: ast.Module, documented: set[str]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, bool]]:
    """Yields public functions, classes and methods, and whether a base documents the method."""
    for node in tree.body:
        if not isinstance(node, DEFINITIONS) or node.name.startswith("_"):
            continue
        yield node, False
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if not isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                if method.name.startswith("_") or _is_setter(method):
                    continue
                # The overriding method does the same as the one in its base, whose docstring
                # describes it.
                bases = _base_names(node)
                is_overriding = any(f"{base}.{method.name}" in documented for base in bases)
                yield method, is_overriding


def _is_setter(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith(".setter") for decorator in method.decorator_list)


def _base_names(node: ast.ClassDef) -> list[str]:
    """Returns the names of the bases of a class, without their modules and arguments."""
    # Classes are matched by name alone, which is enough within one project.
    return [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]


def _documented_methods(trees: Sequence[ast.Module] | Iterator[ast.Module]) -> set[str]:
    """Returns CLASS.METHOD of every method with a docstring, in the class or one of its bases."""
    methods: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases.setdefault(node.name, []).extend(_base_names(node))
            documented = methods.setdefault(node.name, set())
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and ast.get_docstring(method):
                    documented.add(method.name)
    # A method that is documented two classes above takes two passes.
    is_changed = True
    while is_changed:
        is_changed = False
        for name, names in methods.items():
            # A base that no file defines, such as one of a library, has no methods here.
            inherited = set().union(*(methods.get(base, set()) for base in bases[name]))
            is_changed = is_changed or not inherited <= names
            names |= inherited
    return {f"{name}.{method}" for name, names in methods.items() for method in names}


def main(arguments: Sequence[str]) -> None:
    """Prints the table, and the places under the paths that are given."""
    print(HEADER)
    library = sorted(path.name for path in (ROOT / "codellama_jax").iterdir() if path.is_dir())
    groups = {f"codellama_jax/{name}": [f"codellama_jax/{name}"] for name in library}
    groups |= {name: [name] for name in CODE}
    for name, paths in groups.items():
        files = python_files(paths)
        if files:
            print(measure_files(files).row(name))
    print(measure_files(python_files(CODE)).row("all"))
    print(*NOTES, sep="\n")
    if arguments:
        places = measure_files(python_files(arguments)).places
        for argument in arguments:
            page = ROOT / argument
            if page.suffix == ".md":
                places += measure_page(page)
        for name, line, text, fix in places:
            print(f"{name}:{line}: {text}: {fix}")


if __name__ == "__main__":
    main(sys.argv[1:])
