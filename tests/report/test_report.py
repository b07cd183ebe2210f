"""Reports of small run folders: their contents, and that no text of a run breaks the page."""

import dataclasses
import html
import json
import math
import re

import hypothesis
import hypothesis.strategies as st
import pytest
import toy
from etils import epath
from strict_html import Strict

from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import Experiment, to_dict
from codellama_jax.probes import Bigram, Completions, Infilling, Infills, Perplexity
from codellama_jax.report.page import Code, Page
from codellama_jax.report.reading import read_stage
from codellama_jax.report.report import _curves, write_report
from codellama_jax.report.results import StageResult

CLAIM = """A toy Code Llama learns to fill in code.

Expected  that it
          learns.
Cost      4 minutes.
Command   python launch.py run quickstart --code.steps
          40
          make quickstart"""
STEPS = 40
HOSTILE = "<script>alert(1)</script> & </pre></mark> **kw* `a` |\r\x1b[0m\n\tif x < 3:\n"
COUNTS = {"files": 1658, "not_utf8": 4, "train": 9603, "validation": 400}


def experiment() -> Experiment:
    code = toy.stage(seq_len=256, steps=STEPS)
    long = dataclasses.replace(
        toy.stage(seq_len=1024, steps=STEPS),
        init="previous",
        model=dataclasses.replace(toy.MODEL, rope_theta=1e6),
    )
    shown = {
        "perplexity": Perplexity((128,)),
        "infilling": Infilling(64),
        "completions": Completions(("def mean(xs):\n",)),
        "infills": Infills(1),
        "bigram": Bigram(),
    }
    arms = {"code_llama": {"code": code, "long_context": long}}
    return Experiment("quickstart", "toy", arms, probes=shown)


def probes(quality: float = 1.0, text: str = HOSTILE) -> dict:
    line = {
        "prefix": "def f(x):\n    y = 1\n",
        "middle": "    return x",
        "suffix": "\n\nclass A:\n    pass\n",
    }
    infilling = {
        "examples": 64,
        "loss": 2.5,
        "loss_examples": 32,
        "samples": [
            {**line, "generated": line["middle"] + " "},
            {**line, "generated": text.partition("\n")[0]},
        ],
    }
    perplexity = {}
    for length in (128, 256, 512, 1024):
        perplexity[str(length)] = {
            "perplexity": 30 * quality - math.log2(length),
            "last_block": 28 * quality - math.log2(length),
            "tokens": 8 * length,
            "documents": 8,
        }
    return {
        "config": {},
        "perplexity": perplexity,
        "infilling": {"PSM": {**infilling, "exact": 0.125}, "SPM": {**infilling, "exact": 0.25}},
        "infills": [{**line, "generated": text}],
        "completions": [{"prompt": "def mean(xs):\n", "completion": text}],
        "bigram": {"loss": 4.1842, "tokens": 8192, "training_tokens": 1_000_000},
    }


def write_metrics(folder, steps: int = STEPS, first: float = 8.0) -> None:
    def loss(step: int) -> float:
        return first * 0.5 ** (step / STEPS)

    lines = [{"step": 0, "validation_loss": loss(0), "seconds": 1.0}]
    for step in range(1, steps + 1):
        rates = {"tokens_per_second": 5e4 + step, "flops_per_second": 4.2e10} if step > 1 else {}
        numbers = {
            "loss": loss(step) + 0.1 * math.sin(step),
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "tokens": 2000 * step,
        }
        lines.append({"step": step, **numbers, **rates, "seconds": 2.0 * step})
        if step % 10 == 0:
            lines.append({"step": step, "validation_loss": loss(step), "seconds": 2.0 * step})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(out: epath.Path, answers: tuple[dict, dict]) -> None:
    """Makes the folder of a finished run of two stages."""
    (out / "config.json").write_text(json.dumps(to_dict(experiment())))
    (out / "corpus.json").write_text(
        json.dumps({"code, blocks of 500 characters": COUNTS, "code": COUNTS | {"train": 1572}})
    )
    for stage, answer, first in zip(("code", "long_context"), answers, (8.0, 6.0)):
        write_metrics(out / "code_llama" / stage, first=first)
        (out / "code_llama" / stage / "probes.json").write_text(json.dumps(answer))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run with its report."""
    out = epath.Path(tmp_path_factory.mktemp("run"))
    write_run(out, (probes(1.5), probes()))
    write_report(out, experiment(), CLAIM, seconds=400)
    return out


def test_shows_the_figures_of_the_run(run):
    html_text = Strict((run / "report.html").read_text()).text
    markdown = html.unescape((run / "report.md").read_text())
    for page in (html_text, markdown):
        for shown in (
            "quickstart, toy scale",
            "A toy Code Llama learns to fill in code.",
            "6.000 → 3.000 (0.50 ×)",
            "4.184",  # bigram
            "12.5% (8 of 64)",
            "25.0% (16 of 64)",
            "1,658",
            "1 min 20 s",
            "42G",
            "over the first 32.",
            "measured on a CPU",
            "train documents, blocks of 500 characters",
            "1,572",
            "38.00 (35.00)",  # perplexity after the code stage at 128 tokens
            "80k of 81.9k",  # tokens trained on, and the positions that `plan` prints
            "6 min 40 s for this start of the command",
            "2 min 40 s of training and validation",
            "4 × 8",  # heads of the model
            "is SPM.",  # the format with more exact lines
            f'complete {run} "def mean(xs):"',
            "A toy Code Llama",
            "No verdict",  # this claim expects something and no function compares it
        ):
            assert shown in page.replace("\xa0", " "), shown


def test_one_file_without_scripts_or_network(run):
    page = (run / "report.html").read_text()
    parsed = Strict(page)
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 3  # two stages, perplexity
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    links = [
        value
        for _, attrs in parsed.tags
        for key, value in attrs.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert all("currentColor" in figure for figure in figures)
    assert {p.name for p in (run / "figures").iterdir()} == {
        "training-code_llama.png",
        "perplexity.png",
    }
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (run / "figures").iterdir())
    assert set(re.findall(r"\]\((.*?)\)", (run / "report.md").read_text())) == {
        "figures/training-code_llama.png",
        "figures/perplexity.png",
    }


def test_generated_text_stays_text_and_is_marked(run):
    page, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    visible = HOSTILE.replace("\r", "␍").replace("\x1b", "␛")
    for text in (page, markdown):
        blocks = [
            html.unescape(block) for block in re.findall(r"<pre>\n(.*?)</pre>", text, re.DOTALL)
        ]
        assert f"def mean(xs):\n<mark>{visible}</mark>" in blocks
        assert f"def f(x):\n    y = 1\n<mark>{visible}</mark>\n\nclass A:\n    pass\n" in blocks
        assert (
            'def f(x):\n    y = 1\n<mark class="truth">    return x</mark>\n\nclass A:\n    pass\n'
            in blocks
        )
    assert "return x   ✓" in Strict(page).text


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(), st.text(alphabet="<>&|`*_ \n\r\t\\ax"))
def test_any_text_comes_back_from_the_page(title, text):
    page = Page(title)
    page.table(("a", "b"), [(text, Code(text))])
    page.code(("", [(text, ""), (text, "mark")]))
    visible = text.replace("\r", "␍")
    parsed = Strict(page.html())
    assert f"ab{visible}{visible}" in parsed.text and parsed.text.rstrip().endswith(
        (visible + visible).rstrip()
    )
    rows = [
        line
        for line in page.markdown().split("\n")
        if line.startswith("| ") and line.endswith(" |")
    ]
    assert all(line.count("|") == 3 for line in rows[:3])
    flat = visible.replace("\n", " ")
    assert html.unescape(rows[2]) == f"| {flat} | <code>{flat.replace(' ', chr(160))}</code> |"


def test_last_line_of_a_repeated_step_counts(tmp_path):
    folder = epath.Path(tmp_path)
    lines = [
        {"step": 0, "validation_loss": 9.0, "seconds": 0},
        {"step": 1, "loss": 8.0, "tokens": 10, "seconds": 1},
        {"step": 2, "loss": 7.0, "tokens": 20, "seconds": 2},
        {"step": 2, "validation_loss": 6.5, "seconds": 2},
        {"step": 2, "loss": 7.5, "tokens": 22, "seconds": 3},
        {"step": 2, "validation_loss": 6.0, "seconds": 3},
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo'
    )
    result = read_stage(StageFolder(folder), "a/b", toy.stage())
    assert [line["loss"] for line in result.training] == [8.0, 7.5]
    assert [(line["tokens"], line["validation_loss"]) for line in result.validation] == [
        (0.0, 9.0),
        (22.0, 6.0),
    ]


def test_a_run_that_has_not_begun(tmp_path):
    write_report(epath.Path(tmp_path), experiment(), CLAIM)
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "40, not run" in text and "81.9k planned" in text
    assert "Training" not in text and "Corpus" not in text


def test_an_unfinished_stage_beside_an_arm_not_run(tmp_path):
    whole = experiment()
    two = dataclasses.replace(whole, arms={**whole.arms, "no_infilling": whole.arms["code_llama"]})
    write_metrics(epath.Path(tmp_path) / "code_llama" / "code", steps=15)
    write_report(epath.Path(tmp_path), two, CLAIM)
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "15 of 40" in text and text.count("40, not run") == 3
    assert "Training: code_llama" in text and "Training: no_infilling" not in text


def test_probes_that_could_not_be_had_leave_a_note(tmp_path):
    answers = {
        "perplexity": {"note": "no document is long enough"},
        "infilling": {"note": "no sentinels"},
        "infills": {"note": "no sentinels"},
    }
    write_run(epath.Path(tmp_path), (answers, answers))
    write_report(epath.Path(tmp_path), experiment(), CLAIM)
    text = Strict((tmp_path / "report.html").read_text()).text
    assert "long_context: no document is long enough" in text and "code: no sentinels" in text


def test_fields_of_the_claim_are_joined_and_commands_kept_apart(run):
    page = (run / "report.html").read_text()
    assert "<dt>Expected</dt><dd>that it learns.</dd>" in page
    for command in ("python launch.py run quickstart --code.steps 40", "make quickstart"):
        assert f"<dt>Command</dt><dd><code>{command}</code></dd>" in page


def test_no_panel_is_wider_than_a_phone_shows_with_readable_letters(run):
    """A panel is scaled to the 358 px of a narrow page: 10 px letters need 463 px at most."""
    page = (run / "report.html").read_text()
    widths = [float(width) for width in re.findall(r'<svg[^>]* width="([0-9.]+)pt"', page)]
    assert len(widths) == 3  # one per stage, and perplexity
    assert all(width * 96 / 72 * 10 / (10 * 96 / 72) <= 358 for width in widths)
    assert page.count("<table>") == page.count('<div class="scroll"><table>')


def test_an_unfinished_run_names_the_command_that_resumes_it(tmp_path):
    write_metrics(epath.Path(tmp_path) / "code_llama" / "code", steps=15)
    write_report(epath.Path(tmp_path), experiment(), CLAIM)
    text = (tmp_path / "report.md").read_text()
    assert "The same command resumes it" in text and " export " not in text


DAMAGE = [b"", b'{"perplex', b"\0" * 64, b"[]", b"5", b"null", b"[" * 100_000, b"\xff\xfe\x00"]


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_file_of_a_stage_is_a_line_that_names_it(tmp_path, content):
    folder = epath.Path(tmp_path) / "code"
    write_metrics(folder)
    for file in ("probes.json", "done.json"):
        (folder / file).write_bytes(content)
    result = read_stage(StageFolder(folder), "code", toy.stage())
    assert "probes.json" in "".join(result.damage)
    assert result.loss == 4.0 and result.probes == {}


@pytest.mark.parametrize(
    "line", [b"\0" * 40, b"[1]", b'{"step": 3, "lo', b'{"step": "3", "loss": null}']
)
def test_damaged_metrics_are_no_traceback(tmp_path, line):
    folder = epath.Path(tmp_path) / "code"
    write_metrics(folder)
    (folder / "metrics.jsonl").write_bytes(line + b"\n" + (folder / "metrics.jsonl").read_bytes())
    result = read_stage(StageFolder(folder), "code", toy.stage())
    assert "metrics.jsonl" in "".join(result.damage) or result.loss == 4.0


def test_damage_costs_no_other_part_of_the_report(tmp_path):
    write_run(epath.Path(tmp_path), (probes(1.5), probes() | {"perplexity": {"128": 5}}))
    for file in ("corpus.json", "code_llama/code/probes.json", "code_llama/code/done.json"):
        (tmp_path / file).write_bytes(b"\0" * 64)
    write_report(epath.Path(tmp_path), experiment(), CLAIM)
    text = html.unescape((tmp_path / "report.md").read_text())
    for file in ("corpus.json", "code_llama/code/probes.json"):
        assert re.search(f"Damaged file: .*{file}", text), file
    assert "The section on perplexity is left out" in text
    assert "8.000 → 4.000 (0.50 ×)" in text and "25.0% (16 of 64)" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = ("perplexity", "infilling", "infills", "completions", "bigram")


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    st.dictionaries(st.sampled_from(KEYS), JSON), st.dictionaries(st.text(max_size=3), JSON)
)
def test_probes_of_any_form_are_no_traceback(tmp_path_factory, answers, counts):
    out = epath.Path(tmp_path_factory.mktemp("run"))
    folder = out / "code_llama" / "code"
    folder.mkdir(parents=True)
    (folder / "probes.json").write_text(json.dumps(answers))
    (out / "corpus.json").write_text(json.dumps(counts))
    write_report(out, experiment(), CLAIM)
    assert (out / "report.html").exists()


def test_a_stage_of_no_steps_is_not_drawn():
    stage = toy.stage(steps=STEPS)
    line = {"tokens": 2e3, "step": 9, "loss": 4.0, "learning_rate": 1e-3, "tokens_per_second": 5e4}
    first = {"step": 0, "tokens": 0.0, "validation_loss": 5.0}
    trained = StageResult("infill", stage, [line], [first], {})
    general = StageResult("general", dataclasses.replace(stage, steps=0), [], [first], {})
    page = Page("title")
    _curves(page, {"main": [general]})
    assert not page.images
    _curves(page, {"main": [general, trained]})
    _curves(page, {"alone": [trained]})
    both, alone = page.images.values()
    assert both == alone
