"""A page written twice at once: as one HTML file that needs nothing beside it, and as Markdown with its figures in a folder."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {127: 0x2421}  # shown as U+240D and so on
MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]~|<>&#$"}

STYLE = (Path(__file__).parent / "page.css").read_text()

Part = tuple[str, str]  # text and how it is marked: "" not, "mark" by the model, "truth"


class Code(str):
    """A table cell whose spaces are kept."""


class Page:
    """Blocks in reading order. Everything given is text and is escaped."""

    def __init__(self, title: str):
        self.title = title
        self.images: dict[str, bytes] = {}  # PNG by name
        self._blocks: list[tuple[str, str]] = []  # HTML and Markdown
        self.heading(title, 1)

    def heading(self, text: str, level: int = 2) -> None:
        self._blocks.append((f"<h{level}>{_html(text)}</h{level}>", f"{'#' * level} {_markdown(text)}"))

    def text(self, text: str) -> None:
        self._blocks.append((f"<p>{_html(text)}</p>", _markdown(text)))

    def note(self, text: str) -> None:
        self._blocks.append((f'<p class="note">{_html(text)}</p>', _markdown(text)))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        row = lambda cells, tag: f"<tr>{''.join(f'<{tag}>{_html_cell(c)}</{tag}>' for c in cells)}</tr>"
        body = "".join(row(cells, "td") for cells in rows)
        lines = [headings, ["---"] * len(headings)]
        markdown = [f"| {' | '.join(map(_markdown_cell, cells))} |" for cells in (*lines, *rows)]
        head = row(headings, "th") if any(headings) else ""
        self._blocks.append((f'<div class="scroll"><table>{head}{body}</table></div>', "\n".join(markdown)))

    def figure(self, name: str, caption: str, svg: str, png: bytes) -> None:
        """`svg` goes into the HTML, `png` beside the Markdown."""
        self.images[name] = png
        figure = f'<figure role="img" aria-label="{_html(caption)}">{svg}<figcaption>{_html(caption)}</figcaption></figure>'
        self._blocks.append((figure, f"![{_markdown(caption)}](figures/{name}.png)\n\n{_markdown(caption)}"))

    def code(self, *columns: tuple[str, Sequence[Part]]) -> None:
        """Puts blocks of text with marked parts side by side, each under its label; whitespace is kept."""
        blocks = [(label, "".join(_marked(*part) for part in parts)) for label, parts in columns]
        label = lambda text: f'<div class="note">{_html(text)}</div>' if text else ""
        beside = "".join(f"<div>{label(text)}<pre>\n{block}</pre></div>" for text, block in blocks)
        markdown = [f"{_markdown(text)}\n\n<pre>\n{block}</pre>".lstrip() for text, block in blocks]
        self._blocks.append((f'<div class="beside">{beside}</div>', "\n\n".join(markdown)))

    def html(self) -> str:
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_html(self.title)}</title>'
        head = f"<head>{head}<style>{STYLE}</style></head>"
        body = "\n".join(block for block, _ in self._blocks)
        return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>\n'

    def markdown(self) -> str:
        return "\n\n".join(block for _, block in self._blocks) + "\n"


def _html(text: str) -> str:
    return html.escape(text.translate(CONTROLS))


def _markdown(text: str) -> str:
    return text.translate(CONTROLS).translate(MARKDOWN)


def _html_cell(text: str) -> str:
    return f"<code>{_html(text)}</code>" if isinstance(text, Code) else _html(text)


def _markdown_cell(text: str) -> str:
    if text == "---":
        return text
    plain = _markdown(text.replace("\n", " "))
    return f"<code>{plain.replace(' ', chr(0xA0))}</code>" if isinstance(text, Code) else plain


def _marked(text: str, mark: str) -> str:
    kind = ' class="truth"' if mark == "truth" else ""
    return f"<mark{kind}>{_html(text)}</mark>" if mark else _html(text)
