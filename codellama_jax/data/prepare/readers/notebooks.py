"""Turns Jupyter notebooks into text, in the two forms that StarCoder was trained on.

`script` is the code, with Markdown cells as comments, in the percent format of jupytext; magics are
commented out. (BigCode ran jupytext with its default, the light format, which differs in the marks
between cells.) `structured` is the sequence of Markdown, code and output between sentinels (paper,
section 3.3, and BigCode's jupyter-segment-notebooks.py): neighbouring cells of a kind are merged,
the notebook starts with Markdown and ends with code, and the output is that of the last code cell.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, NamedTuple

from codellama_jax.data.prepare.filters.languages import canonical, comment_mark, language_of

START = "<jupyter_start>"
TEXT = "<jupyter_text>"
CODE = "<jupyter_code>"
OUTPUT = "<jupyter_output>"
EMPTY_OUTPUT = "<empty_output>"
NOTEBOOK = "Jupyter Notebook"
DEFAULT = "Python"  # of a notebook that names no language

# A line that runs a magic or a shell command, or asks for help.
_MAGIC = re.compile(
    r"^([ \t]*)(?=%{1,2}[A-Za-z]|![^=\s]|\?{1,2}\w|\b[\w.]{1,200}\?{1,2}$)", re.MULTILINE
)
_MAGIC_MARKS = frozenset("%!?")
# Magics of a cell that leave it Python; the rest of a cell under another one is another language.
_PYTHON_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun", "%%memit")


class Notebook(NamedTuple):
    """The text of a notebook."""

    text: str
    language: str


class Cell(NamedTuple):
    """A cell that is not empty."""

    kind: str  # "code", "markdown" or "raw"
    source: str
    output: str  # the text of its first output, as BigCode took it


def converted(text: str, form: str) -> Notebook | None:
    """Returns a notebook as text, None if it is damaged.

    Args:
        text: the JSON of the file, of notebook format 3 or later.
        form: `script` or `structured`.
    """
    try:
        content = json.loads(text)
        cells = [_cell(cell) for cell in _cells_of(content)]
        language = _language(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    cells = [cell for cell in cells if cell.source.strip()]
    if form == "structured":
        return Notebook(_structured(cells), NOTEBOOK)
    return Notebook(_script(cells, language), language)


def _cells_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    if "cells" in content:
        return content["cells"]
    # Format 3 groups the cells in worksheets.
    return [cell for sheet in content["worksheets"] for cell in sheet["cells"]]


def _cell(cell: dict[str, Any]) -> Cell:
    kind = _joined(cell["cell_type"])
    if kind == "heading":  # of format 3
        return Cell("markdown", "#" * int(cell["level"]) + " " + _joined(cell["source"]), "")
    # Format 3 calls the source of a code cell "input".
    source = _joined(cell["source"] if "source" in cell else cell["input"])
    outputs = cell.get("outputs") or []
    output = _joined(outputs[0].get("text", "")) if outputs else ""
    return Cell(kind, source, output)


def _joined(source: Any) -> str:
    """Returns a multi-line text, which a notebook stores as a string or as a list of lines."""
    text = source if isinstance(source, str) else "".join(source)
    # The JSON may hold half of a surrogate pair or a NUL: neither is text.
    return text.encode(errors="replace").decode().replace("\0", "")


def _language(content: dict[str, Any]) -> str:
    metadata = content.get("metadata") or {}
    information = metadata.get("language_info") or {}
    kernel = metadata.get("kernelspec") or {}
    name = information.get("name") or kernel.get("language") or metadata.get("language") or ""
    if name:
        # "ipython" names Python; so does "python3".
        return DEFAULT if "python" in name.lower() else canonical(_joined(name))
    return language_of(f"x{information.get('file_extension') or ''}") or DEFAULT


def _script(cells: list[Cell], language: str) -> str:
    mark = comment_mark(language)
    parts = []
    for cell in cells:
        source = cell.source.rstrip("\n")
        if cell.kind == "code":
            code = _python(source) if language == DEFAULT else source
            parts.append(f"{mark} %%\n{code}\n")
        else:
            parts.append(f"{mark} %% [{cell.kind}]\n{_commented(source, mark)}\n")
    return "\n".join(parts)


def _python(source: str) -> str:
    """Returns the code of a cell with IPython's commands, which Python cannot parse, commented."""
    first = source.split(maxsplit=1)[0]
    if first.startswith("%%") and first not in _PYTHON_MAGICS:
        return _commented(source, "#")
    return source if _MAGIC_MARKS.isdisjoint(source) else _MAGIC.sub(r"\1# ", source)


def _commented(source: str, mark: str) -> str:
    return "\n".join([f"{mark} {line}".rstrip() for line in source.split("\n")])


def _structured(cells: list[Cell]) -> str:
    # StarCoder's form alternates text and code, begins with text and ends with code, so that every
    # code has the text before it.
    groups = [list(group) for _, group in itertools.groupby(cells, key=_kind_of)]
    if groups and _kind_of(groups[0][0]) == "code":
        del groups[0]
    if groups and _kind_of(groups[-1][0]) == "text":
        del groups[-1]
    parts = []
    for group in groups:
        source = "\n".join(cell.source for cell in group)
        if _kind_of(group[0]) == "text":
            parts.append(TEXT + source)
        else:
            # Of a group of cells BigCode keeps only the output of the last one.
            parts.append(CODE + source + OUTPUT + (group[-1].output or EMPTY_OUTPUT))
    return START + "".join(parts) if parts else ""


def _kind_of(cell: Cell) -> str:
    return "code" if cell.kind == "code" else "text"
