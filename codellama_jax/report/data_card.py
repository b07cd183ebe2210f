"""Writes the data card of a prepared corpus: report.html, and report.md with figures/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from etils import epath

from codellama_jax.data.prepare.card import Amount, CardData, Duplicates
from codellama_jax.report.figures import Bars, bars_figure
from codellama_jax.report.page import Code, Page
from codellama_jax.report.plan import short
from codellama_jax.report.tables import duration
from codellama_jax.system.files import write_file

ROWS = 40  # of a table; the others are summed in a last row
SAMPLES = 5  # ids of a cluster
MOST_CLUSTERS = 20  # whose ids are shown

# What a reader needs to know of each action of a rule on benchmarks.
ACTIONS = {
    "drop": "documents dropped",
    "remove": "documents with passages removed",
    "report": "documents reported, nothing removed",
}


def write_card(folder: epath.PathLike, card: CardData) -> None:
    """Writes the card into the folder of the corpus."""
    page = Page(f"Data card: {' '.join(card.name.split())}")
    page.text(
        "This page describes a corpus of text for training a language model: where its documents"
        " come from, which were dropped and why, and what was written. A document is usually one"
        " file. Characters are those of Unicode."
    )
    for section in SECTIONS:
        section(page, card)
    root = epath.Path(folder)
    # Figures first: the Markdown refers to them.
    for name, png in page.images.items():
        write_file(root / "figures" / f"{name}.png", png)
    write_file(root / "report.md", page.markdown())
    write_file(root / "report.html", page.html())


def _summary(page: Page, card: CardData) -> None:
    read = _total(source.read for source in card.sources)
    dropped = _total(card.reasons.values())
    kept = _total(language.kept for language in card.languages.values())
    entries: list[tuple[str, str]] = [
        ("Prepared by", Code(card.command)),
        ("Read", _amount(read)),
        ("Dropped", _amount(dropped)),
        ("Kept", _amount(kept)),
        ("Policy", f"{card.policy}: the named set of rules that a document must meet"),
    ]
    for name, value in card.changes.items():
        entries.append((f"Changed {name}", Code(json.dumps(value, ensure_ascii=False))))
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    entries.append(("Software", versions))
    page.definitions(entries)


def _sources(page: Page, card: CardData) -> None:
    page.heading("Sources")
    rows = [[Code(source.path), *_cells(source.read)] for source in card.sources]
    page.table(("source", "documents read", "characters"), _shortened(rows))


def _reasons(page: Page, card: CardData) -> None:
    page.heading("Dropped documents")
    if not card.reasons:
        page.text("No document was dropped.")
        return
    read = _total(source.read for source in card.sources).documents
    rows = []
    for reason, amount in card.reasons.items():
        rows.append([Code(reason), *_cells(amount), _share(amount.documents, read)])
    page.table(("reason", "documents", "characters", "of documents read"), rows)
    page.note(
        "Each document is counted once, at the first rule that it does not meet. Characters of"
        " files that could not be read as text are not counted."
    )


def _languages(page: Page, card: CardData) -> None:
    page.heading("Languages")
    total = _total(language.kept for language in card.languages.values()).characters
    rows = []
    for name, language in sorted(card.languages.items(), key=_by_kept):
        kept, dropped = language.kept, language.dropped
        cells = [*_cells(kept), _share(kept.characters, total), *_cells(dropped)]
        rows.append([name or "unknown", *cells])
    headings = (
        "language",
        "documents kept",
        "characters kept",
        "of all kept",
        "documents dropped",
        "characters dropped",
    )
    page.table(headings, _shortened(rows))
    page.note("By file name and content, with the names of GitHub's linguist.")


def _by_kept(item: tuple) -> tuple:
    name, language = item
    return -language.kept.characters, -language.dropped.documents, name


def _lengths(page: Page, card: CardData) -> None:
    bounds = _bins({int(name) for bins in card.lengths.values() for name in bins})
    if not bounds:
        return
    page.heading("Lengths")
    heights = {}
    for name, bins in card.lengths.items():
        heights[name] = [bins.get(str(bound), 0) for bound in bounds]
    ticks = [short(bound) for bound in bounds]
    drawing = bars_figure(Bars("length from (characters)", "documents", ticks, heights))
    caption = "Documents by length. Each bin ends at twice the length at which it begins."
    page.figure("lengths", caption, *drawing)


def _duplicates(page: Page, card: CardData) -> None:
    if not card.duplicates:
        return
    page.heading("Duplicates")
    page.text(
        "A cluster holds documents that are copies of each other: equal ones (exact), or those"
        " whose sets of short passages are mostly equal (near). One document of each is kept."
    )
    rows = []
    for kind, duplicates in card.duplicates.items():
        clusters = sum(duplicates.sizes.values())
        rows.append([kind, f"{clusters:,}", *_cells(duplicates.dropped)])
    page.table(("copies", "clusters", "documents dropped", "characters dropped"), rows)
    for kind, duplicates in card.duplicates.items():
        if duplicates.sizes:
            _clusters(page, kind, duplicates)


def _clusters(page: Page, kind: str, duplicates: Duplicates) -> None:
    counts: dict[int, int] = {}
    for size, clusters in duplicates.sizes.items():
        bound = 1 << int(size).bit_length() - 1
        counts[bound] = counts.get(bound, 0) + clusters
    bounds = _bins(set(counts))
    ticks = [short(bound) for bound in bounds]
    heights = {kind: [counts.get(bound, 0) for bound in bounds]}
    drawing = bars_figure(Bars("documents of a cluster, from", "clusters", ticks, heights))
    caption = f"Clusters of {kind} copies by size. Each bin ends at twice its beginning."
    page.figure(f"clusters-{len(page.images)}", caption, *drawing)
    rows = []
    for cluster in duplicates.largest[:MOST_CLUSTERS]:
        ids = "\n".join(cluster.ids[:SAMPLES])
        rows.append([f"{cluster.size:,}", Code(ids)])
    if rows:
        page.table(("documents", f"largest clusters of {kind} copies: first ids"), rows)


def _personal_data(page: Page, card: CardData) -> None:
    if not card.personal_data:
        return
    page.heading("Personal data")
    page.text("Passages that look like personal data were replaced; the documents are kept.")
    rows = []
    for kind, redacted in card.personal_data.items():
        rows.append([kind, f"{redacted.places:,}", f"{redacted.documents:,}"])
    page.table(("kind", "passages replaced", "in documents"), rows)


def _licenses(page: Page, card: CardData) -> None:
    page.heading("Licenses")
    rows = []
    for name, amount in sorted(card.licenses.items(), key=_by_characters):
        rows.append([name or "unknown", *_cells(amount)])
    page.table(
        ("license of the repository (SPDX)", "documents kept", "characters"), _shortened(rows)
    )


def _by_characters(item: tuple) -> tuple:
    name, amount = item
    return -amount.characters, name


def _contamination(page: Page, card: CardData) -> None:
    if not card.contamination and not card.token_overlaps:
        return
    page.heading("Benchmarks in the corpus")
    page.text(
        "Benchmarks are tests of a model. Their texts should not be in its training data, because"
        " the model could have memorised the answers. These texts were searched for in all"
        " documents that had been kept until then."
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
            " and the 200 characters on each side are removed."
            " tokens: it holds more than 10 consecutive tokens of one."
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
    tokenizers: dict[str, None] = {}
    for split in card.splits.values():
        tokenizers |= dict.fromkeys(split.tokens)
    rows = []
    for name, split in card.splits.items():
        cells = [*_cells(split.written), f"{split.repositories:,}", f"{split.shards:,}"]
        tokens = [f"{split.tokens.get(tokenizer, 0):,}" for tokenizer in tokenizers]
        rows.append([name, *cells, f"{short(split.bytes, billion='G')}B", *tokens])
    headings = ["split", "documents", "characters", "repositories", "shards", "size"]
    page.table([*headings, *(f"tokens ({name})" for name in tokenizers)], rows)
    page.note(
        "All documents of a repository are in one split. A shard is one file of the dataset;"
        " manifest.json has the checksum of each."
    )


def _time(page: Page, card: CardData) -> None:
    page.heading("Time")
    rows = [[stage, duration(seconds)] for stage, seconds in card.seconds.items()]
    page.table(("stage", "time, all starts of the command"), rows)


def _bins(used: set[int]) -> list[int]:
    """Returns the bounds of bins from the first to the last used one; 0, then powers of two."""
    powers = used - {0}
    bounds = [0] if 0 in used else []
    if powers:
        first, last = min(powers).bit_length() - 1, max(powers).bit_length()
        bounds += [1 << bit for bit in range(first, last)]
    return bounds


def _total(amounts: Iterable[Amount]) -> Amount:
    documents = characters = 0
    for amount in amounts:
        documents += amount.documents
        characters += amount.characters
    return Amount(documents, characters)


def _amount(amount: Amount) -> str:
    return f"{amount.documents:,} documents, {amount.characters:,} characters"


def _cells(amount: Amount) -> list[str]:
    return [f"{amount.documents:,}", f"{amount.characters:,}"]


def _share(part: int, total: int) -> str:
    """Returns a share in percent, "" of nothing."""
    return f"{part / total:.1%}" if total else ""


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    """Returns the first ROWS rows, and one that counts the others."""
    if len(rows) <= ROWS + 1:
        return rows
    blank = [""] * (len(rows[0]) - 1)
    return [*rows[:ROWS], [f"and {len(rows) - ROWS:,} more, in card.json", *blank]]


SECTIONS: tuple[Callable[[Page, CardData], None], ...] = (
    _summary,
    _sources,
    _reasons,
    _languages,
    _lengths,
    _duplicates,
    _personal_data,
    _licenses,
    _contamination,
    _splits,
    _time,
)
