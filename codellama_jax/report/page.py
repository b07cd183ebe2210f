"""A page that is written in two forms: one self-contained HTML file, and Markdown with figures."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

# Generated text may hold control characters. They are shown as Unicode's pictures of them, such as
# U+240D for a carriage return.
CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {127: 0x2421}
# As entities, because a backslash does not escape a character everywhere, such as in a table.
MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]~|<>&#$"}
PROSE = 40  # characters above which the text of a table cell wraps

STYLE = (Path(__file__).parent / "page.css").read_text()

Part = tuple[str, str]  # a text and its mark: "" for none, "mark" if generated, "truth"


class Code(str):
    """A text that is shown in a fixed-width font, with all its spaces."""


class Page:
    """Blocks in reading order. All arguments of its methods are plain text and are escaped."""

    def __init__(self, title: str):
        self.title = title
        self.images: dict[str, bytes] = {}  # PNG by name
        self._blocks: list[tuple[str, str]] = []  # each as HTML and as Markdown
        self.heading(title, 1)

    def mark(self) -> int:
        """Returns the current position, for `rewind`."""
        return len(self._blocks)

    def rewind(self, mark: int) -> None:
        """Removes the blocks that were added after `mark`."""
        del self._blocks[mark:]

    def heading(self, text: str, level: int = 2) -> None:
        """Adds a heading; level 1 is the title of the page."""
        tag = f"h{level}"
        self._add(f"<{tag}>{_html(text)}</{tag}>", f"{'#' * level} {_markdown(text)}")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._add(f"<p>{_html(text)}</p>", _markdown(text))

    def note(self, text: str) -> None:
        """Adds a paragraph in a quieter colour."""
        self._add(f'<p class="note">{_html(text)}</p>', _markdown(text))

    def definitions(self, entries: Sequence[tuple[str, str]]) -> None:
        """Adds a list of (label, paragraph)."""
        terms, paragraphs = "", []
        for label, text in entries:
            terms += f"<dt>{_html(label)}</dt><dd>{_html_cell(text)}</dd>"
            paragraphs.append(f"**{_markdown_cell(label)}:** {_markdown_cell(text)}")
        self._add(f"<dl>{terms}</dl>", "\n\n".join(paragraphs))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table. In HTML it scrolls if it is wider than the page."""
        # Markdown has no table without headings; empty ones are left out in HTML only.
        head = _html_row(headings, "th") if any(headings) else ""
        body = ""
        lines = [_markdown_row(headings), f"|{' --- |' * len(headings)}"]
        for cells in rows:
            body += _html_row(cells, "td")
            lines.append(_markdown_row(cells))
        table = f'<div class="scroll"><table>{head}{body}</table></div>'
        self._add(table, "\n".join(lines))

    def figure(self, name: str, caption: str, svgs: Sequence[str], png: bytes) -> None:
        """Adds a figure.

        Args:
          name: the file name of the PNG, without extension.
          caption: the text below the figure.
          svgs: the panels of the figure, for HTML.
          png: the complete figure, for Markdown.
        """
        self.images[name] = png
        label = _html(caption)
        parts = f'<div class="parts">{"".join(svgs)}</div>'
        figure = f'<figure role="img" aria-label="{label}">{parts}<figcaption>{label}</figcaption>'
        text = _markdown(caption)
        self._add(f"{figure}</figure>", f"![{text}](figures/{name}.png)\n\n{text}")

    def code(self, *columns: tuple[str, Sequence[Part]]) -> None:
        """Adds preformatted texts side by side, each a label and the parts of the text."""
        # A code block of Markdown cannot mark a part, so it is HTML in both forms.
        cells, texts = [], []
        for label, parts in columns:
            text = "".join(_marked(*part) for part in parts)
            note = f'<div class="note">{_html(label)}</div>' if label else ""
            # HTML drops a line break right after <pre>: without this one, a text that begins with a
            # break would lose it.
            cells.append(f"<div>{note}<pre>\n{text}</pre></div>")
            texts.append(f"{_markdown(label)}\n\n<pre>\n{text}</pre>".lstrip())
        self._add(f'<div class="beside">{"".join(cells)}</div>', "\n\n".join(texts))

    def html(self) -> str:
        """Returns the page as one HTML file, with styles and figures inside."""
        meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        title = f"<title>{_html(self.title)}</title>"
        head = f"<head>{meta}{title}<style>{STYLE}</style></head>"
        body = "\n".join(block for block, _ in self._blocks)
        document = f'<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>'
        return f"<!DOCTYPE html>\n{document}\n"

    def markdown(self) -> str:
        """Returns the page as Markdown, with references to figures/NAME.png."""
        return "\n\n".join(block for _, block in self._blocks) + "\n"

    def _add(self, html_block: str, markdown_block: str) -> None:
        self._blocks.append((html_block, markdown_block))


def _html(text: str) -> str:
    return html.escape(text.translate(CONTROLS))


def _markdown(text: str) -> str:
    return text.translate(CONTROLS).translate(MARKDOWN)


def _html_cell(text: str) -> str:
    return f"<code>{_html(text)}</code>" if isinstance(text, Code) else _html(text)


def _html_row(cells: Sequence[str], tag: str) -> str:
    row = ""
    for cell in cells:
        wraps = ' class="prose"' if len(cell) > PROSE and not isinstance(cell, Code) else ""
        row += f"<{tag}{wraps}>{_html_cell(cell)}</{tag}>"
    return f"<tr>{row}</tr>"


def _markdown_cell(text: str) -> str:
    plain = _markdown(text.replace("\n", " "))
    if isinstance(text, Code):
        # Markdown merges spaces, except no-break spaces (U+00A0).
        return f"<code>{plain.replace(' ', chr(0xA0))}</code>"
    return plain


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown_cell, cells))} |"


def _marked(text: str, mark: str) -> str:
    """Returns the HTML of a part of a text."""
    kind = ' class="truth"' if mark == "truth" else ""
    return f"<mark{kind}>{_html(text)}</mark>" if mark else _html(text)
