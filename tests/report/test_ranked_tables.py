"""A stage on ranked pairs: its losses are in nats per pair, and shown in their two parts."""

import dataclasses

import pytest
import toy

from codellama_jax.report.figures import Curves
from codellama_jax.report.page import Page
from codellama_jax.report.results import StageResult, unit_of
from codellama_jax.report.tables import stages_section
from codellama_jax.training.objectives import OBJECTIVES

LOGGED = [
    {"step": 1, "tokens": 4, "loss": 9.5, "rank_loss": 0.5, "tuning_loss": 9.0, "seconds": 1.0},
    {"step": 9, "tokens": 36, "loss": 5.25, "rank_loss": 0.25, "tuning_loss": 5.0, "seconds": 2.0},
]


def result_of(objective):
    stage = toy.stage(seq_len=256, steps=9)
    if objective != "next_token":
        data = dataclasses.replace(stage.data, examples="pairs", chat="pangu_coder2")
        stage = dataclasses.replace(stage, data=data, objective=objective)
    validation = [{"step": 9, "tokens": 36, "validation_loss": 5.5, "seconds": 2.0}]
    return StageResult(f"arm/{objective}", stage, LOGGED, validation, {})


KINDS = {
    "rrtf": "its sum",
    "rrtf_mean": "its mean",
    "rrhf": "equal diff",
    "chosen": "fine-tuning alone",
}


def test_every_ranked_objective_is_shown():
    assert set(KINDS) == set(OBJECTIVES) - {"next_token"}


@pytest.mark.parametrize(("objective", "kind"), KINDS.items())
def test_a_ranked_stage_shows_both_losses(objective, kind):
    page = Page("report")
    stages_section(page, [result_of("next_token"), result_of(objective)])
    text = page.markdown().replace("&#95;", "_")
    (row,) = [line for line in text.splitlines() if "0.500 → 0.250" in line]
    assert f"arm/{objective}" in row and kind in row and "9.000 → 5.000" in row
    assert "nats per token, or per pair" in text


def test_a_stage_on_tokens_has_no_table_of_pairs():
    page = Page("report")
    stages_section(page, [result_of("next_token")])
    assert "fine-tuning" not in page.markdown() and "nats per token, at" in page.markdown()


def test_the_unit_of_losses():
    assert unit_of([result_of("rrtf")]) == result_of("rrhf").unit == "nats per pair"
    assert unit_of([result_of("next_token")]) == Curves("", [], [], None).unit == "nats per token"
