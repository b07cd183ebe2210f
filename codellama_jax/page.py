"""A page written twice at once: as one HTML file that needs nothing beside it, and as Markdown with its figures in a folder."""

from __future__ import annotations

import html
from collections.abc import Sequence

CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {127: 0x2421}  # shown as U+240D and so on
MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]~|<>&#$"}

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1f2328; --quiet: #59636e; --page: #fff; --box: #f6f8fa; --line: #d1d9e0; --mark: #fff3b0; --truth: #cdeed3;
}
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --quiet: #9198a1; --page: #0d1117; --box: #161b22; --line: #3d444d; --mark: #5c4a00; --truth: #14492a; }
}
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 4px; }
p, figcaption { max-width: 80ch; }
figcaption, .note, th { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
figure { margin: 16px 0; }
figure svg { max-width: 100%; height: auto; }
pre, code { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
td:has(code) { min-width: 260px; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; margin: 4px 0; }
pre { max-height: 36em; overflow: auto; }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
mark.truth { background: var(--truth); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 12px; margin-bottom: 16px; }
.beside > div { min-width: 0; }
"""

Part = tuple[str, str]  # text and how it is marked: "" not, "mark" by the model, "truth"


class Code(str):
    """A table cell whose spaces are kept."""


class Page:
    """Blocks in reading order. Everything given is text and is escaped."""

    def __init__(self, title: str):
        self.title = title
        self.images: dict[str, bytes] = {}  # PNG by name
        self._html: list[str] = [f"<h1>{_html(title)}</h1>"]
        self._markdown: list[str] = [f"# {_markdown(title)}"]

    def heading(self, text: str, level: int = 2) -> None:
        self._add(f"<h{level}>{_html(text)}</h{level}>", f"{'#' * level} {_markdown(text)}")

    def text(self, text: str) -> None:
        self._add(f"<p>{_html(text)}</p>", _markdown(text))

    def note(self, text: str) -> None:
        self._add(f'<p class="note">{_html(text)}</p>', _markdown(text))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        row = lambda cells, tag: f"<tr>{''.join(f'<{tag}>{_html_cell(c)}</{tag}>' for c in cells)}</tr>"
        body = "".join(row(cells, "td") for cells in rows)
        lines = [headings, ["---"] * len(headings)]
        markdown = [f"| {' | '.join(map(_markdown_cell, cells))} |" for cells in (*lines, *rows)]
        head = row(headings, "th") if any(headings) else ""
        self._add(f'<div class="scroll"><table>{head}{body}</table></div>', "\n".join(markdown))

    def figure(self, name: str, caption: str, svg: str, png: bytes) -> None:
        """`svg` goes into the HTML, `png` beside the Markdown."""
        self.images[name] = png
        figure = f'<figure role="img" aria-label="{_html(caption)}">{svg}<figcaption>{_html(caption)}</figcaption></figure>'
        self._add(figure, f"![{_markdown(caption)}](figures/{name}.png)\n\n{_markdown(caption)}")

    def code(self, *columns: tuple[str, Sequence[Part]]) -> None:
        """Puts blocks of text with marked parts side by side, each under its label; whitespace is kept."""
        blocks = [(label, "".join(_marked(*part) for part in parts)) for label, parts in columns]
        label = lambda text: f'<div class="note">{_html(text)}</div>' if text else ""
        beside = "".join(f"<div>{label(text)}<pre>\n{block}</pre></div>" for text, block in blocks)
        markdown = [f"{_markdown(text)}\n\n<pre>\n{block}</pre>".lstrip() for text, block in blocks]
        self._add(f'<div class="beside">{beside}</div>', "\n\n".join(markdown))

    def html(self) -> str:
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_html(self.title)}</title>'
        head = f"<head>{head}<style>{STYLE}</style></head>"
        return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body><main>\n' + "\n".join(self._html) + "\n</main></body></html>\n"

    def markdown(self) -> str:
        return "\n\n".join(self._markdown) + "\n"

    def _add(self, html_block: str, markdown_block: str) -> None:
        self._html.append(html_block)
        self._markdown.append(markdown_block)


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
