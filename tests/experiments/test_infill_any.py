"""A general model that is taught to infill: what its files decide, and what the report claims."""

import dataclasses

import published
import pytest
from etils import epath

from codellama_jax.errors import UserError
from codellama_jax.report.results import StageResult
from codellama_jax.runs import experiment_file
from codellama_jax.runs.commands import PlanOptions, load_experiment, parse_experiment
from codellama_jax.weights import gguf_writing, huggingface
from experiments import infill_any

# A general model: it has no entries for sentinels.
GENERAL = dataclasses.replace(published.MODEL, vocab_size=published.PIECES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Inits of the same random model as a Hugging Face folder and as a GGUF file."""
    folder = epath.Path(tmp_path_factory.mktemp("general"))
    source = published.source_of(published.random_params(GENERAL), GENERAL)
    huggingface.write(source, published.tokenizer(), folder / "hf")
    gguf_writing.write(source, published.tokenizer(), folder / "gguf", "f32")
    return {"hf": f"hf:{folder / 'hf'}", "gguf": f"gguf:{folder / 'gguf' / 'model.gguf'}"}


def command(*arguments: str):
    return parse_experiment(PlanOptions, ["infill_any", *arguments], "launch.py plan", "")


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_model_and_tokenizer_are_those_of_the_general_model(sources, kind):
    parsed = command("--general.init", sources[kind], "--infill.model.remat", "dots")
    experiment = experiment_file.completed(parsed.module, parsed.experiment)
    general, infill = experiment.arms["main"].values()
    expected = dataclasses.replace(
        published.MODEL, compute_dtype="float32", remat="dots", attention=""
    )
    assert infill.model == expected
    assert general.model == dataclasses.replace(expected, remat=general.model.remat)
    assert (general.steps, general.init, infill.init) == (0, sources[kind], "previous")
    assert experiment.tokenizer.path == sources[kind].partition(":")[2]


def test_a_tokenizer_that_was_named_is_kept(sources):
    parsed = command("--general.init", sources["hf"], "--tokenizer.path", "mine.model")
    completed = experiment_file.completed(parsed.module, parsed.experiment)
    assert completed.tokenizer.path == "mine.model"


def test_the_toy_needs_no_file():
    parsed = command("--scale", "toy")
    assert experiment_file.completed(parsed.module, parsed.experiment) == parsed.experiment


def test_weights_that_do_not_exist_and_unknown_scales_are_refused(tmp_path):
    parsed = command("--general.init", f"hf:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match=r"there is no file .*absent"):
        experiment_file.completed(parsed.module, parsed.experiment)
    with pytest.raises(UserError, match="scale is '7b': it must be smollm2 or toy"):
        infill_any.experiment("7b")


def expectations(first: float, exact: float, loss: float, perplexity: float) -> list[bool]:
    """Returns whether each is met by a model with these measures, after one that is never right."""
    experiment, module = load_experiment(PlanOptions("infill_any", "toy"))
    chain = []
    measured = ((0.0, 0.0, 2.0, 10.0), (first, exact, loss, perplexity))
    for (name, stage), values in zip(experiment.arms["main"].items(), measured):
        *of_middles, of_code = values
        measures = {}
        for measure, value in zip(("first", "exact", "loss"), of_middles):
            measures[measure] = [value, value]
        probes = {
            "infilling_kinds": {"single-line": {"PSM": measures, "SPM": measures}},
            "perplexity": {"256": {"perplexity": of_code}},
        }
        chain.append(StageResult(name, stage, [], [], probes))
    return [expectation.met for expectation in module.finding({"main": [chain]})]


def test_every_expectation_can_fail():
    assert expectations(0.2, 0.1, 1.0, 10.9) == [True] * 7
    assert expectations(0.0, 0.0, 2.0, 11.1) == [False] * 7
    assert expectations(0.2, 0.0, 1.0, 9.0) == [True, False, True] * 2 + [True]
    assert expectations(0.0, 0.1, 2.1, 9.0) == [False, True, False] * 2 + [True]
