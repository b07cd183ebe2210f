"""The data card: its figures, and that no name or text of a corpus breaks the page."""

import html
import re
import types

import pytest
from strict_html import Strict

from codellama_jax.data.prepare.card import CardData, Cluster, Language, Split, TokenOverlap
from codellama_jax.data.prepare.contamination.part_files import RuleCount
from codellama_jax.report import data_card
from codellama_jax.report.data_card import ROWS, write_card, write_pages
from codellama_jax.report.figures import MOST_TICKS, Bars, bars_figure

HOSTILE = "<script>alert(1)</script>|`a`\n\n# x\r\n=== $x$ [a](b) ![a](b) </pre></table>"


def card(name: str = "code", **changes) -> CardData:
    """Returns a card in which `name` is used for every name that a corpus can choose."""
    fields = {
        "command": f"codellama-jax prepare {name}",
        "policy": "starcoder",
        "changes": {"near_duplicates.threshold": 0.85, f"extensions.{name}": [name]},
        "versions": {"apache-beam": "2.77.0"},
        "fingerprint": "0123abcd",
        "read": 1500,
        "read_characters": 3_000_000,
        "dropped": {"not_utf8": 100, "long_line": 200},
        "examples": {"long_line": (name,)},
        "cleaned": 8,
        "languages": {
            "C++": Language(0, 1, 10, 1, 10),
            "Python": Language(300, 1250, 2_700_000, 1199, 2_599_990),
            name: Language(),
        },
        "lengths": {"after the filters": {1: 1, 1024: 1299}, "in the dataset": {1024: 1200}},
        "licenses": {name: 200, "mit": 1000},
        "redacted": {"email": 34},
        "cluster_sizes": {2: 30, 3: 4, 20: 1},
        "largest_clusters": (Cluster(20, name, (name, "b.py")),),
        "contamination": (
            RuleCount("humaneval", "substring", "drop", 3, 4, 2),
            RuleCount(name, "ngrams", "remove", 8, 9, 7),
        ),
        "token_overlaps": (TokenOverlap("humaneval", 164, 150, 4, 1000, 125),),
        "splits": {
            "train": Split(1100, 2_500_000, 3, {name: 700_000}),
            "validation": Split(100, 100_000, 1, {name: 30_000}),
        },
        "bytes": 1_234_567,
        "seconds": {"documents": 75.2, "duplicates": 3.0},
    }
    return CardData(**(fields | changes))


def blank(bars: Bars) -> tuple[list[str], bytes]:
    """Returns a drawing without any mark."""
    return ["<svg></svg>"], b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "corpus"
    write_pages(folder, card())
    return folder


def test_both_pages_show_the_figures(folder):
    page = Strict((folder / "report.html").read_text()).text
    markdown = html.unescape((folder / "report.md").read_text()).replace("\xa0", " ")
    for text in (page, markdown):
        for shown in (
            "Data card: corpus",
            "codellama-jax prepare code",
            "1,500 documents, 3,000,000 characters",
            "300 documents",
            "not in UTF-8",
            "with a long line",
            "1,200 documents, 2,600,000 characters",
            "Changed near_duplicates.threshold",
            "13.3%",  # 200 of the 1,500 documents read
            "100.0%",  # of the characters are Python
            "700,000",  # tokens
            "1.23MB",
            "Clusters of copies: 35.",
            "1 min 15 s",
            "12.5%",  # of HumanEval's tokens
            "documents with passages removed",
            "34",  # e-mail addresses
        ):
            assert shown in text, shown
    # Languages by characters kept.
    assert page.index("Python") < page.index("C++")


def test_the_card_of_a_result_names_the_command_without_the_path_of_the_program(tmp_path):
    counts = {"documents": {"read": {"documents": 2, "characters": 5}}, "dataset": {}}
    manifest = {"fingerprint": "f", "policy": {}, "splits": {}, "tokens": {}, "files": {}}
    result = types.SimpleNamespace(manifest=manifest | {"counts": counts}, seconds={"dataset": 2})
    write_card(tmp_path, result, ["/home/a/__main__.py", "prepare", "my files"])
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "codellama-jax prepare 'my files'" in text and "/home" not in text
    assert "2 documents, 5 characters" in text


def test_the_page_is_one_file_and_the_markdown_names_its_figures(folder):
    parsed = Strict((folder / "report.html").read_text())
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 2
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    names = set(re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text()))
    assert names == {"figures/lengths.png", "figures/clusters.png"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names)


@pytest.mark.parametrize(
    "name", [HOSTILE, "| --- |", "\0\x1b[0m", "", " ", "ü\u202e𝄞", "a" * 5000], ids=range(7)
)
def test_names_of_a_corpus_stay_text(tmp_path, monkeypatch, name):
    # Drawing is slow, and no figure has a name of the corpus.
    monkeypatch.setattr(data_card, "bars_figure", blank)
    plain = tmp_path / "plain"
    hostile = tmp_path / (name.replace("/", "").replace("\0", "")[:100].strip() or "x")
    for folder, used in ((hostile, name), (plain, "code")):
        write_pages(folder, card(used))
    page, harmless = (Strict((path / "report.html").read_text()) for path in (hostile, plain))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    # Markdown: the same blocks, headings and cells.
    lines, others = ((path / "report.md").read_text().split("\n") for path in (hostile, plain))
    assert len(lines) == len(others)
    for line, other in zip(lines, others):
        assert line.count("|") == other.count("|")
        assert re.match("#*", line)[0] == re.match("#*", other)[0]
        assert "<script" not in line and "](" not in line.replace("](figures/", "")


def test_steps_that_did_not_run_are_left_out(tmp_path):
    empty = {"dropped", "examples", "languages", "lengths", "licenses", "redacted"}
    nothing = {key: {} for key in empty | {"cluster_sizes", "splits", "seconds", "changes"}}
    lists = dict.fromkeys(("largest_clusters", "contamination", "token_overlaps"), ())
    write_pages(tmp_path, card(**nothing, **lists))
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "No document was dropped." in text
    for heading in ("Duplicates", "Personal data", "Benchmarks", "Lengths"):
        assert heading not in text


def test_long_tables_end_with_the_number_of_other_rows(tmp_path):
    languages = {
        f"language {n}.": Language(kept=1, kept_characters=1000 - n) for n in range(ROWS + 30)
    }
    write_pages(tmp_path, card(languages=languages))
    text = Strict((tmp_path / "report.html").read_text()).text
    assert f"language {ROWS - 1}." in text and f"language {ROWS}." not in text
    assert "and 30 more, in manifest.json" in text


def test_empty_bins_between_others_are_drawn(tmp_path, monkeypatch):
    drawn = []

    def keep(bars):
        drawn.append(bars)
        return blank(bars)

    monkeypatch.setattr(data_card, "bars_figure", keep)
    lengths = {"after the filters": {1: 1, 16: 7}, "in the dataset": {4: 2}}
    write_pages(tmp_path, card(lengths=lengths))
    assert drawn[0].ticks == ["1", "2", "4", "8", "16"]
    assert drawn[0].heights == {
        "after the filters": [1, 0, 0, 0, 7],
        "in the dataset": [0, 0, 2, 0, 0],
    }
    # Clusters of three documents are in the bin up to four, one of 20 in the bin up to 32.
    assert drawn[1].ticks == ["2", "4", "8", "16", "32"]
    assert drawn[1].heights == {"clusters": [30, 4, 0, 0, 1]}


@pytest.mark.parametrize("bins", [[0], [1, 2**30], [1 << bit for bit in range(40)]])
def test_any_number_of_bins_is_drawn(bins):
    heights = {"kept": [10**9] * len(bins), "dropped": [0] * len(bins)}
    svgs, png = bars_figure(Bars("length", "documents", [str(bound) for bound in bins], heights))
    assert len(svgs) == 1 and png.startswith(b"\x89PNG")
    # Labels of the x axis that would overlap are left out.
    assert sum(f">{bound}<" in svgs[0] for bound in bins) <= MOST_TICKS
