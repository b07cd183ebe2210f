"""Options of an evaluation that would have no effect are refused."""

import pytest

from codellama_jax.benchmarks import effects
from codellama_jax.benchmarks.out_folder import removed_if_empty
from codellama_jax.benchmarks.settings import Checking, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.errors import UserError

HOT = Settings(temperature=0.8, top_p=0.9, seed=3)


@pytest.mark.parametrize(
    ("name", "settings", "checking", "message"),
    [
        ("humaneval", Settings(spm=True), Checking(), "--spm has no effect on humaneval"),
        ("lcc", Settings(), Checking(mode="compatible"), "--mode compatible has no effect on lcc"),
        ("lcc", Settings(), Checking(workers=2), "--workers 2 .* which runs no programs"),
        ("truthfulqa", Settings(beams=2), Checking(), "--beams 2 has no effect on truthfulqa"),
        ("truthfulqa", Settings(max_new_tokens=9), Checking(), "--max-new-tokens 9"),
    ],
)
def test_an_option_that_a_benchmark_does_not_use(name, settings, checking, message, files):
    with pytest.raises(UserError, match=message):
        effects.check_effects(load(name, data=files[name]), settings, checking)


def test_options_of_generation_need_a_model():
    effects.check_sources(HOT, Checking(), "", scores=False)
    with pytest.raises(UserError, match=r"--temperature 0\.8 has no effect with --samples-file"):
        effects.check_sources(HOT, Checking(), "x.jsonl", scores=True)
    with pytest.raises(UserError, match="--partial has no effect without --samples-file"):
        effects.check_sources(Settings(), Checking(partial=True), "", scores=True)
    with pytest.raises(UserError, match="--mode compatible has no effect on perplexity"):
        effects.check_measured("perplexity", Settings(), Checking(mode="compatible"))


def test_options_of_drawing_need_a_temperature():
    effects.check_drawing(HOT, 0.8)
    with pytest.raises(
        UserError, match=r"--seed 3 has no effect with --beams 2, .*: leave it out$"
    ):
        effects.check_drawing(Settings(beams=2, seed=3), 0.0)
    with pytest.raises(UserError, match=r"--top-p 0\.9 .* leave it out, or pass --temperature too"):
        effects.check_drawing(Settings(top_p=0.9), 0.0)


def test_several_samples_need_a_temperature_or_beams():
    effects.check_drawing(Settings(samples=4), 0.1)
    effects.check_drawing(Settings(samples=4, beams=4), 0.0)
    with pytest.raises(UserError, match="--samples 4 at temperature 0 are all the same answer"):
        effects.check_drawing(Settings(samples=4), 0.0)


def test_folders_of_a_refused_evaluation_are_removed_and_others_stay(tmp_path):
    out = tmp_path / "runs" / "out"
    with pytest.raises(UserError), removed_if_empty(out):
        out.mkdir(parents=True)
        raise UserError("refused")
    assert not list(tmp_path.iterdir())
    with removed_if_empty(out):
        out.mkdir(parents=True)
        (out / "results.json").touch()
    with removed_if_empty(tmp_path / "runs"):
        pass
    assert [path.name for path in out.iterdir()] == ["results.json"]
