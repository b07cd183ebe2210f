"""Writes the data card of a prepared corpus: report.html, and report.md with figures/."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from codellama_jax.command_line import SCRIPT
from codellama_jax.data.prepare.card import CardData, card_of
from codellama_jax.data.prepare.records import REASONS
from codellama_jax.report.figures import Bars, bars_figure
from codellama_jax.report.page import Code, Page
from codellama_jax.report.plan import short
from codellama_jax.report.tables import duration
from codellama_jax.system.files import write_file

if TYPE_CHECKING:
    from codellama_jax.data.prepare.preparation import Result

ROWS = 40  # of a table; the others are counted in a last row
SAMPLES = 5  # ids of a cluster
MOST_CLUSTERS = 20  # whose ids are shown

# Effects of the rules on benchmarks.
ACTIONS = {
    "drop": "documents dropped",
    "remove": "documents with passages removed",
    "report": "documents reported, nothing removed",
}


def write_card(folder: epath.PathLike, result: Result, command: Sequence[str]) -> None:
    """Writes the card of a corpus into its folder.

    Args:
        folder: the folder of the corpus.
        result: what was prepared.
        command: the words of the command line, the program first.
    """
    # The path of the program differs between machines.
    line = shlex.join([SCRIPT, *command[1:]])
    write_pages(folder, card_of(result.manifest, result.seconds, line))


def write_pages(folder: epath.PathLike, card: CardData) -> None:
    """Writes both pages and their figures."""
    root = epath.Path(folder)
    page = Page(f"Data card: {' '.join(root.name.split())}")
    page.text(
        "This page describes a corpus of text for training a language model: which documents were"
        " read, which were dropped and why, and what was written. A document is usually one file."
    )
    for section in SECTIONS:
        section(page, card)
    # Figures first: the Markdown refers to them.
    for name, png in page.images.items():
        write_file(root / "figures" / f"{name}.png", png)
    write_file(root / "report.md", page.markdown())
    write_file(root / "report.html", page.html())


def _summary(page: Page, card: CardData) -> None:
    kept = sum(split.documents for split in card.splits.values())
    characters = sum(split.characters for split in card.splits.values())
    entries: list[tuple[str, str]] = [
        ("Prepared by", Code(card.command)),
        ("Read", f"{card.read:,} documents, {card.read_characters:,} characters"),
        ("Dropped", f"{sum(card.dropped.values()):,} documents"),
        ("Written", f"{kept:,} documents, {characters:,} characters"),
        ("Policy", f"{card.policy}: the named set of rules that a document must meet"),
    ]
    for name, value in card.changes.items():
        entries.append((f"Changed {name}", Code(json.dumps(value, ensure_ascii=False))))
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    entries += [("Software", versions), ("Fingerprint", Code(card.fingerprint))]
    page.definitions(entries)
    page.note("Corpora with the same fingerprint have the same files, byte for byte.")


def _dropped(page: Page, card: CardData) -> None:
    page.heading("Dropped documents")
    if not card.dropped:
        page.text("No document was dropped.")
        return
    rows = []
    for reason, count in sorted(card.dropped.items(), key=_by_count):
        examples = card.examples.get(reason)
        example = Code(examples[0]) if examples else ""
        rows.append([REASONS[reason], f"{count:,}", _share(count, card.read), example])
    page.table(("reason", "documents", "of those read", "an example"), _shortened(rows))
    page.note("Each document is counted once, at the first rule that it does not meet.")


def _languages(page: Page, card: CardData) -> None:
    page.heading("Languages")
    total = sum(language.kept_characters for language in card.languages.values())
    rows = []
    for name, language in sorted(card.languages.items(), key=_by_characters):
        rows.append(
            [
                name,
                f"{language.dropped:,}",
                f"{language.filtered:,}",
                f"{language.filtered_characters:,}",
                f"{language.kept:,}",
                f"{language.kept_characters:,}",
                _share(language.kept_characters, total),
            ]
        )
    headings = (
        "language",
        "dropped by filters",
        "after the filters",
        "characters",
        "in the dataset",
        "characters",
        "share of characters",
    )
    page.table(headings, _shortened(rows))
    page.note(
        "Numbers of documents, unless they are of characters. Languages have the names of GitHub's"
        " linguist. Between filters and dataset, duplicates and benchmarks are removed; a document"
        " from which a passage was removed counts once for each remaining piece."
    )


def _by_characters(item: tuple) -> tuple:
    name, language = item
    return -language.kept_characters, -language.filtered_characters, -language.dropped, name


def _by_count(item: tuple) -> tuple:
    name, count = item
    return -count, name


def _lengths(page: Page, card: CardData) -> None:
    # Bins that either diagram uses, because their bars are drawn side by side.
    bounds = _bins({bound for bins in card.lengths.values() for bound in bins})
    if not bounds:
        return
    page.heading("Lengths")
    heights = {}
    for name, bins in card.lengths.items():
        heights[name] = [bins.get(bound, 0) for bound in bounds]
    ticks = [short(bound) for bound in bounds]
    drawing = bars_figure(Bars("length up to (characters)", "documents", ticks, heights))
    caption = "Documents by length. Each bin begins above half the length at which it ends."
    page.figure("lengths", caption, *drawing)


def _duplicates(page: Page, card: CardData) -> None:
    if not card.cluster_sizes:
        return
    page.heading("Duplicates")
    page.text(
        f"Clusters of copies: {sum(card.cluster_sizes.values()):,}. The documents of a cluster are"
        " equal, or share most of their short passages. One document of each cluster is kept."
    )
    # Most clusters are pairs and a few are huge: bins that double in size show both.
    bins: dict[int, int] = {}
    for size, clusters in card.cluster_sizes.items():
        bound = 1 << max(size - 1, 0).bit_length()
        bins[bound] = bins.get(bound, 0) + clusters
    bounds = _bins(set(bins))
    ticks = [short(bound) for bound in bounds]
    heights = {"clusters": [bins.get(bound, 0) for bound in bounds]}
    drawing = bars_figure(Bars("documents of a cluster, up to", "clusters", ticks, heights))
    caption = "Clusters of copies by size. Each bin begins above half the size at which it ends."
    page.figure("clusters", caption, *drawing)
    rows = []
    for cluster in card.largest_clusters[:MOST_CLUSTERS]:
        members = "\n".join(cluster.members[:SAMPLES])
        rows.append([f"{cluster.size:,}", Code(cluster.kept), Code(members)])
    if rows:
        page.table(("documents", "kept", "first documents of the cluster"), rows)
        page.note("The largest clusters.")


def _redacted(page: Page, card: CardData) -> None:
    if not card.redacted:
        return
    page.heading("Personal data")
    page.text("Passages that look like personal data were replaced; the documents are kept.")
    page.table(("kind", "passages replaced"), _counts(card.redacted))


def _licenses(page: Page, card: CardData) -> None:
    page.heading("Licenses")
    rows = _shortened(_counts(card.licenses))
    page.table(("license of the repository (SPDX)", "documents in the dataset"), rows)


def _contamination(page: Page, card: CardData) -> None:
    if not card.contamination and not card.token_overlaps:
        return
    page.heading("Benchmarks in the corpus")
    page.text(
        "Benchmarks are tests of a model. Their texts should not be in its training data, because"
        " the model could have memorised the answers. They were searched for in all documents that"
        f" had been kept until then; of {card.cleaned:,} documents passages were removed."
    )
    rows = []
    for count in card.contamination:
        action = ACTIONS.get(count.action, count.action)
        numbers = [f"{count.tasks:,}", f"{count.documents:,}", f"{count.matches:,}"]
        rows.append([count.benchmark, count.rule, *numbers, action])
    if rows:
        headings = ("benchmark", "rule", "tasks", "documents", "matches", "effect")
        page.table(headings, rows)
        page.note(
            "substring: a document holds a text of the benchmark. similarity: its words are mostly"
            " those of a task. ngrams: it holds 13 consecutive words of a text, by default; these"
            " and the 200 characters on each side are removed. tokens: it holds more than 10"
            " consecutive tokens of a text. One document may be in several rows."
        )
    if card.token_overlaps:
        _overlaps(page, card)


def _overlaps(page: Page, card: CardData) -> None:
    rows = []
    for overlap in card.token_overlaps:
        share = _share(overlap.contaminated, overlap.tokens)
        tasks = [f"{number:,}" for number in (overlap.tasks, overlap.clean, overlap.dirty)]
        rows.append([overlap.benchmark, share, *tasks])
    headings = (
        "benchmark",
        "tokens in the corpus",
        "tasks",
        "clean (under 20 % of tokens)",
        "dirty (80 % or more)",
    )
    page.table(headings, rows)
    page.note("Words and punctuation are tokens. Passages that other rules removed are counted.")


def _splits(page: Page, card: CardData) -> None:
    page.heading("Dataset")
    # An empty split has no counts, so that the tokenizers of all splits are collected first.
    tokenizers: dict[str, None] = {}
    for split in card.splits.values():
        tokenizers |= dict.fromkeys(split.tokens)
    rows = []
    for name, split in card.splits.items():
        cells = [f"{split.documents:,}", f"{split.characters:,}", f"{split.shards:,}"]
        tokens = [f"{split.tokens.get(tokenizer, 0):,}" for tokenizer in tokenizers]
        rows.append([name, *cells, *tokens])
    headings = ["split", "documents", "characters", "shards"]
    page.table([*headings, *(f"tokens of tokenizer {name}" for name in tokenizers)], rows)
    page.note(
        f"All files have {short(card.bytes, billion='G')}B. A shard is one file; manifest.json has"
        " the size and checksum of each."
    )


def _time(page: Page, card: CardData) -> None:
    page.heading("Time")
    rows = [[stage, duration(seconds)] for stage, seconds in card.seconds.items()]
    page.table(("stage", "time"), rows)
    page.note("Of the last start of the command; earlier ones may have done parts of a stage.")


def _counts(counts: Mapping[str, int]) -> list[list[str]]:
    """Returns the rows of a table of counts, the largest first."""
    rows = []
    for name, count in sorted(counts.items(), key=_by_count):
        rows.append([name, f"{count:,}"])
    return rows


def _bins(used: set[int]) -> list[int]:
    """Returns the bounds of bins from the first to the last used one: powers of two."""
    if not used:
        return []
    # Empty bins in between are shown too, so that the axis stays logarithmic.
    return [1 << bit for bit in range(min(used).bit_length() - 1, max(used).bit_length())]


def _share(part: int, total: int) -> str:
    """Returns a share in percent, "" of nothing."""
    return f"{part / total:.1%}" if total else ""


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    """Returns the first ROWS rows, and one that counts the others."""
    # A table of one row more is as long as the shortened one, whose last row counts the others.
    if len(rows) <= ROWS + 1:
        return rows
    blank = [""] * (len(rows[0]) - 1)
    return [*rows[:ROWS], [f"and {len(rows) - ROWS:,} more, in manifest.json", *blank]]


SECTIONS: tuple[Callable[[Page, CardData], None], ...] = (
    _summary,
    _dropped,
    _languages,
    _lengths,
    _duplicates,
    _redacted,
    _licenses,
    _contamination,
    _splits,
    _time,
)
