"""The data card: its figures, and that no name or text of a corpus breaks the page."""

import html
import re

import pytest
from strict_html import Strict

from codellama_jax.data.prepare.card import (
    Amount,
    CardData,
    Cluster,
    Duplicates,
    Language,
    Redacted,
    Source,
    Split,
    TokenOverlap,
)
from codellama_jax.data.prepare.contamination_stage import RuleCount
from codellama_jax.report import data_card
from codellama_jax.report.data_card import ROWS, write_card
from codellama_jax.report.figures import MOST_TICKS, Bars, bars_figure

HOSTILE = "<script>alert(1)</script>|`a`\n\n# x\r\n=== $x$ [a](b) ![a](b) </pre></table>"


def card(name: str = "code", **changes) -> CardData:
    """Returns a card in which `name` is used for every name that a corpus can choose."""
    fields = {
        "name": name,
        "command": f"codellama-jax prepare {name}",
        "policy": "starcoder",
        "changes": {"near_duplicates.threshold": 0.85, name: [name]},
        "versions": {"apache-beam": "2.77.0"},
        "sources": (Source(f"/data/{name}.jsonl", Amount(1500, 3_000_000)),),
        "reasons": {"long_line": Amount(200, 400_000), "not_utf8": Amount(100, 0)},
        "languages": {
            "C++": Language(Amount(1, 10), Amount(0, 0)),
            "Python": Language(Amount(1199, 2_599_990), Amount(300, 400_000)),
            name: Language(),
        },
        "lengths": {"kept": {"0": 1, "1024": 1199}, "dropped": {"2048": 300}},
        "licenses": {"mit": Amount(1000, 2_000_000), name: Amount(200, 600_000)},
        "splits": {
            "train": Split(Amount(1100, 2_500_000), 40, 3, 1_234_567, {"llama2": 700_000}),
            "validation": Split(Amount(100, 100_000), 5, 1, 50_000),
        },
        "seconds": {"documents": 75.2, "duplicates": 3.0},
        "personal_data": {"email": Redacted(12, 34)},
        "duplicates": {
            "exact": Duplicates(Amount(7, 70)),
            "near": Duplicates(
                Amount(50, 5000), {"2": 30, "3": 4, "20": 1}, (Cluster(20, (name, "b.py")),)
            ),
        },
        "contamination": (
            RuleCount("humaneval", "substring", "drop", 3, 4, 2),
            RuleCount(name, "ngrams", "remove", 8, 9, 7),
        ),
        "token_overlaps": (TokenOverlap("humaneval", 164, 150, 4, 1000, 125),),
    }
    return CardData(**(fields | changes))


def blank(bars: Bars) -> tuple[list[str], bytes]:
    """Returns a drawing without any mark."""
    return ["<svg></svg>"], b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, card())
    return folder


def test_both_pages_show_the_figures(folder):
    page = Strict((folder / "report.html").read_text()).text
    markdown = html.unescape((folder / "report.md").read_text()).replace("\xa0", " ")
    for text in (page, markdown):
        for shown in (
            "Data card: code",
            "codellama-jax prepare code",
            "1,500 documents, 3,000,000 characters",
            "300 documents, 400,000 characters",
            "1,200 documents, 2,600,000 characters",
            "Changed near_duplicates.threshold",
            "13.3%",  # 200 of the 1,500 documents read
            "100.0%",  # of the characters are Python
            "700,000",  # tokens
            "1.23MB",
            "1 min 15 s",
            "12.5%",  # of HumanEval's tokens
            "documents with passages removed",
            "34",  # e-mail addresses
        ):
            assert shown in text, shown
    # 30 clusters of two and 4 of three documents are in one bin; all clusters are in the table.
    assert "35" in page
    # Languages by characters kept.
    assert page.index("Python") < page.index("C++")


def test_the_page_is_one_file_and_the_markdown_names_its_figures(folder):
    parsed = Strict((folder / "report.html").read_text())
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    names = set(re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text()))
    assert names == {"figures/lengths.png", "figures/clusters-1.png"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.parametrize(
    "name", [HOSTILE, "| --- |", "\0\x1b[0m", "", " ", "ü\u202e𝄞", "a" * 5000], ids=range(7)
)
def test_names_of_a_corpus_stay_text(tmp_path, monkeypatch, name):
    # Drawing is slow, and no figure has a name of the corpus.
    monkeypatch.setattr(data_card, "bars_figure", blank)
    plain = tmp_path / "plain"
    for folder, used in ((tmp_path, name), (plain, "code")):
        write_card(folder, card(used))
    page, harmless = (Strict((path / "report.html").read_text()) for path in (tmp_path, plain))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    # Markdown: the same blocks, headings and cells.
    lines, others = ((path / "report.md").read_text().split("\n") for path in (tmp_path, plain))
    assert len(lines) == len(others)
    for line, other in zip(lines, others):
        assert line.count("|") == other.count("|")
        assert re.match("#*", line)[0] == re.match("#*", other)[0]
        assert "<script" not in line and "](" not in line.replace("](figures/", "")


def test_steps_that_did_not_run_are_left_out(tmp_path):
    empty = card(
        sources=(),
        reasons={},
        languages={},
        lengths={},
        licenses={},
        splits={},
        seconds={},
        personal_data={},
        duplicates={},
        contamination=(),
        token_overlaps=(),
    )
    write_card(tmp_path, empty)
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "No document was dropped." in text
    for heading in ("Duplicates", "Personal data", "Benchmarks", "Lengths"):
        assert heading not in text


def test_long_tables_end_with_the_number_of_other_rows(tmp_path):
    languages = {f"language {n}": Language(Amount(1, 1000 - n)) for n in range(ROWS + 30)}
    write_card(tmp_path, card(languages=languages))
    text = Strict((tmp_path / "report.html").read_text()).text
    assert f"language {ROWS - 1}" in text and f"language {ROWS}" not in text
    assert "and 30 more, in card.json" in text


def test_empty_bins_between_others_are_drawn(tmp_path, monkeypatch):
    drawn = []

    def keep(bars):
        drawn.append(bars)
        return blank(bars)

    monkeypatch.setattr(data_card, "bars_figure", keep)
    write_card(tmp_path, card(lengths={"kept": {"0": 1, "2": 5, "16": 7}, "dropped": {"4": 2}}))
    assert drawn[0].ticks == ["0", "2", "4", "8", "16"]
    assert drawn[0].heights == {"kept": [1, 5, 0, 0, 7], "dropped": [0, 0, 2, 0, 0]}
    # Clusters of two and three documents are in one bin, and one of 20 in the bin from 16.
    assert drawn[1].ticks == ["2", "4", "8", "16"]
    assert drawn[1].heights == {"near": [34, 0, 0, 1]}


@pytest.mark.parametrize("bins", [[0], [1, 2**30], [1 << bit for bit in range(40)]])
def test_any_number_of_bins_is_drawn(bins):
    heights = {"kept": [10**9] * len(bins), "dropped": [0] * len(bins)}
    svgs, png = bars_figure(Bars("length", "documents", [str(bound) for bound in bins], heights))
    assert len(svgs) == 1 and png.startswith(b"\x89PNG")
    # Labels of the x axis that would overlap are left out.
    assert sum(f">{bound}<" in svgs[0] for bound in bins) <= MOST_TICKS
