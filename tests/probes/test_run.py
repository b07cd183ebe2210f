"""All probes of a tiny untrained model, what is kept of earlier answers, and a probe of a user."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import toy
from paths import ROOT
from tiny_model import NEW_TOKENS, ask, subject

from codellama_jax.config import Examples, Probe
from codellama_jax.errors import UserError
from codellama_jax.probes import (
    Bigram,
    Completions,
    Infilling,
    InfillingKinds,
    Infills,
    KeyRetrieval,
    LineEnds,
    Perplexity,
)
from codellama_jax.probes.held_out import lines_to_fill
from codellama_jax.probes.run import config_of, kept_answers, scheduled
from codellama_jax.report.results import StageResult

DOCUMENTS = [250, 256, 0]  # what else decides the answers
FLAT = {  # as every probes.json had it when all probes shared one config
    "perplexity_lengths": [16, 64],
    "perplexity_rows": 8,
    "infilling_examples": 3,
    "bigram": False,
    "completions": [],
    "infills": 0,
    "max_new_tokens": 48,
    "last_stage_only": True,
    "infilling_kinds": ["single-line"],
    "kind_examples": 128,
    "key_lengths": [],
    "key_positions": [0.0, 0.2, 0.4],
    "key_examples": 64,
    "temperatures": [0.8],
    "line_ends": 64,
    "line_end_samples": 200,
    "documents": DOCUMENTS,
}


def test_probes_of_one_model_and_their_keys(model):
    answers = ask(
        model,
        Perplexity((16, 64), 2),
        Infilling(3, NEW_TOKENS),
        Infills(2, NEW_TOKENS),
        Completions(("def mean(xs):\n",), NEW_TOKENS),
        Bigram(),
    )
    assert list(answers) == ["perplexity", "infilling", "infills", "completions", "bigram"]
    assert set(answers["perplexity"]) == {"16", "64"}
    assert {name: m["examples"] for name, m in answers["infilling"].items()} == {"PSM": 3, "SPM": 3}
    middles = [example.middle for example in lines_to_fill(subject(model), 2, NEW_TOKENS)]
    assert [example["middle"] for example in answers["infills"]] == middles
    assert answers["completions"][0]["prompt"] == "def mean(xs):\n"
    assert 0 < answers["bigram"]["loss"] < np.log(model.config.vocab_size)


def test_probes_of_the_ablations(model):
    kinds = InfillingKinds(("random-span",), 2, NEW_TOKENS)
    answers = ask(model, kinds, KeyRetrieval((128,), examples=2), LineEnds((0.8,), 2, 10))
    losses = [m["loss"] for by in answers["infilling_kinds"].values() for m in by.values()]
    assert all(len(values) == 2 and min(values) > 0 for values in losses)
    assert set(answers["key_retrieval"]["128"]) == {"0", "0.2", "0.4"}
    answer = answers["line_ends"]["0.8"]
    assert answer["samples"] == 10 and max(answer["passed"]) <= 10


def test_no_probe_measures_nothing(model):
    assert ask(model) == {}


def test_a_probe_that_cannot_run_is_a_note_with_the_reason(model):
    config = dataclasses.replace(model.config, vocab_size=model.tokenizer.pieces)
    plain = dataclasses.replace(model, config=config)
    answers = ask(plain, Perplexity((16, 100_000)), Infilling(3))
    assert "100,000 tokens" in answers["perplexity"]["note"]
    assert "no infilling sentinels" in answers["infilling"]["note"]
    few = ask(model, Infills(2), documents=["one line"])
    assert "fits 256 tokens" in few["infills"]["note"]


def test_answers_of_unchanged_probes_are_kept():
    """Only a probe that is new or has other options is measured again."""
    probes = {"perplexity": Perplexity((16,)), "line_ends": LineEnds((0.8,))}
    written = {"config": config_of(probes, DOCUMENTS), "perplexity": {"16": 1}, "line_ends": {}}
    assert kept_answers(written, probes, DOCUMENTS) == {"perplexity": {"16": 1}, "line_ends": {}}
    assert kept_answers(written, probes, [0, 256, 0]) == {}
    changed = {**probes, "line_ends": LineEnds((0.2,)), "bigram": Bigram()}
    assert kept_answers(written, changed, DOCUMENTS) == {"perplexity": {"16": 1}}
    last = {"perplexity": Perplexity((16,), stages="last")}
    assert kept_answers(written, last, DOCUMENTS) == {"perplexity": {"16": 1}}
    del written["config"]["perplexity"]["rows"]  # as if the option were new
    assert "perplexity" in kept_answers(written, probes, DOCUMENTS)


def test_a_probe_that_could_not_measure_is_tried_again():
    """As where the sandbox could not be set up, and can be now."""
    probes = {"perplexity": Perplexity((16,)), "line_ends": LineEnds((0.8,))}
    written = {"config": config_of(probes, DOCUMENTS), "perplexity": {"16": 1}}
    written["line_ends"] = {"note": "the sandbox cannot be set up"}
    assert kept_answers(written, probes, DOCUMENTS) == {"perplexity": {"16": 1}}


@pytest.mark.parametrize("written", [None, {}, {"config": 3}, {"config": {"documents": []}}])
def test_nothing_is_kept_of_a_file_without_options(written):
    assert kept_answers(written, {"bigram": Bigram()}, DOCUMENTS) == {}


def test_answers_to_the_flat_config_of_earlier_versions_are_kept():
    answers = {"perplexity": {"16": 1}, "infilling": {}, "infilling_kinds": {}, "line_ends": {}}
    probes = {
        "perplexity": Perplexity((16, 64)),
        "infilling": Infilling(3, 48),
        "infilling_kinds": InfillingKinds(("single-line",), 128, 48, stages="last"),
        "line_ends": LineEnds((0.8,)),
    }
    written = {"config": FLAT, **answers}
    assert kept_answers(written, probes, DOCUMENTS) == answers
    others = {"perplexity": Perplexity((16,)), "infilling": Infilling(3, 64), "bigram": Bigram()}
    assert kept_answers(written, others, DOCUMENTS) == {}


@dataclass(frozen=True)
class Documents(Probe, name="documents_read"):
    """A probe as a user adds it."""

    title = "Documents"

    least: Examples = 1

    def measure(self, subject):
        if len(subject.documents) < self.least:
            raise UserError("too few documents")
        return {"documents": len(subject.documents)}

    def show(self, page, answers):
        page.note(f"{answers[-1][1]['documents']} documents")


def test_a_new_probe_needs_no_other_file(model):
    answers = ask(model, Documents(), documents=["a", "b"])
    assert answers == {"documents_read": {"documents": 2}}
    assert "too few" in ask(model, Documents(3), documents=["a"])["documents_read"]["note"]


def test_importing_the_probes_starts_no_jax():
    program = "import sys, codellama_jax.probes; print('jax' in sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_a_probe_runs_at_the_kept_checkpoints_it_names():
    stage = toy.stage(steps=40, checkpoint_every=10)
    probe = Perplexity((16,), stages="last", at_steps=(20, 10, 15, 40, 50))
    by_step = scheduled({"perplexity": probe, "bigram": Bigram()}, stage, is_last=True)
    names = {step: list(probes) for step, probes in by_step.items()}
    assert names == {None: ["perplexity", "bigram"], 10: ["perplexity@10"], 20: ["perplexity@20"]}
    assert list(scheduled({"perplexity": probe}, stage, is_last=False)[None]) == []
    # The schedule is not part of the answers' options.
    answers = {"perplexity@10": {"16": 1}, "perplexity": {"16": 2}}
    probes = dict.fromkeys(answers, probe)
    written = {"config": config_of(probes, DOCUMENTS), **answers}
    unscheduled = {name: Perplexity((16,)) for name in answers}
    assert kept_answers(written, unscheduled, DOCUMENTS) == answers
    result = StageResult("code", stage, [], [], answers)
    assert [result.probe("perplexity", step)["16"] for step in (10, 40, None)] == [1, 2, 2]
    with pytest.raises(UserError, match="perplexity@20 was not measured"):
        result.probe("perplexity", 20)
