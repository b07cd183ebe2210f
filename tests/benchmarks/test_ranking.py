"""One of several samples of a task, chosen by each ranking of Codex."""

import dataclasses
import json

import numpy as np
import pytest

from codellama_jax.benchmarks import answers, evaluate
from codellama_jax.benchmarks.ranking import back_translated, check_ranking, summarise_ranking
from codellama_jax.benchmarks.settings import Checking, PromptOptions, Ranking, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.errors import UserError
from codellama_jax.generation.scoring import document_losses

EVERY = Ranking(("mean", "sum", "back-translation"), "RUN")
ONE = Checking(workers=1)


def test_each_ranking_chooses_its_own_sample():
    # Task a: only sample 1 passes, b: samples 0 and 2 pass, c: none passes.
    verdicts = {"a": (False, True, False), "b": (True, False, True), "c": (False,) * 3}
    scores = {
        "mean_logprob": {"a": (-2.0, -1.0, -3.0), "b": (-1.0, -2.0, -3.0), "c": (-1.0,) * 3},
        "sum_logprob": {"a": (-5.0, -9.0, -7.0), "b": (-8.0, -7.0, -9.0), "c": (-1.0,) * 3},
        "docstring_logprob": {"a": (-5.0, -4.0, -7.0), "b": (-9.0, -7.0, -8.0), "c": (0.0,) * 3},
    }
    samples, results = {}, []
    for task_id, passed in verdicts.items():
        for number in range(3):
            name = {"task_id": task_id, "sample": number}
            fields = {field: by_task[task_id][number] for field, by_task in scores.items()}
            samples[task_id, number] = {**name, "completion": "", **fields}
            results.append({**name, "completion": "", "passed": passed[number]})
    summary = summarise_ranking(EVERY, results, samples)
    assert summary["pass@1"] == pytest.approx(
        {
            "random": 100 * (1 / 3 + 2 / 3) / 3,
            "mean": 200 / 3,
            "sum": 0,
            "back-translation": 100 / 3,
            "oracle": 200 / 3,
        }
    )
    assert (summary["fewest samples"], summary["most samples"]) == (3, 3)


def completions(*texts):
    samples = {}
    for number, text in enumerate(texts):
        name = {"task_id": "HumanEval/0", "sample": number}
        samples["HumanEval/0", number] = {**name, "completion": text}
    return samples


def test_back_translation_scores_the_docstring_after_the_code(model, files, tmp_path, monkeypatch):
    benchmark = load("humaneval", data=files["humaneval"])
    samples = completions("    return x + x\n\n\n", "    return 1\n")
    ranked = back_translated(model, "RUN", benchmark, samples, tmp_path / "out")
    encode, eos = model.tokenizer.encode, model.tokenizer.eos_id
    for (name, sample), body in zip(ranked.items(), ("    return x + x\n", "    return 1\n")):
        # Signature, body, docstring: as Codex-D was trained. The helper before is left out.
        code = [model.tokenizer.bos_id, *encode(f"def double(x):\n{body}")]
        docstring = '"""Twice x.\n>>> double(2)\n4"""\n'
        ids = [*code, *encode(docstring, leading_space=False), eos]
        [losses] = document_losses(model, [ids])
        expected = -float(np.sum(losses[len(code) - 1 :]))
        assert sample["docstring_logprob"] == pytest.approx(expected, rel=1e-5)
        assert {**sample, "docstring_logprob": None} == {**samples[name], "docstring_logprob": None}
    # They are computed once; those of another completion or model are computed again.
    computed = []

    def recorded(model, functions):
        computed.extend(function.body for function in functions)
        return [0.0] * len(functions)

    monkeypatch.setattr(answers, "docstring_logprobs", recorded)
    assert back_translated(model, "RUN", benchmark, samples, tmp_path / "out") == ranked
    assert not computed
    changed = completions("    return x + x\n\n\n", "    return 2\n")
    back_translated(model, "RUN", benchmark, changed, tmp_path / "out")
    assert computed == ["    return 2\n"]
    back_translated(model, "OTHER", benchmark, samples, tmp_path / "out")
    assert len(computed) == 3


def test_rankings_of_one_set_of_samples_are_reported(model, files, executor, tmp_path, capsys):
    options = PromptOptions(files["humaneval"])
    settings = Settings(samples=3, temperature=2.0, max_new_tokens=4)
    inputs = ("humaneval", lambda: model, options, settings, ONE, tmp_path / "out")
    evaluate.evaluate(*inputs, ranking=EVERY, load_docstring_model=lambda: model)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    names = ["random", "mean", "sum", "back-translation", "oracle"]
    assert list(results["ranking"]["pass@1"]) == names
    assert results["ranking"]["pass@1"]["random"] == results["measures"]["pass@1"]
    printed = capsys.readouterr().out
    assert "pass@1 of one of 3 samples" in printed and "back-translation" in printed
    # Its samples.jsonl can be ranked again without the model that drew them.
    samples_file = str(tmp_path / "out" / "samples.jsonl")
    again = ("humaneval", None, options, Settings(), ONE, tmp_path / "again", samples_file)
    evaluate.evaluate(*again, ranking=Ranking(("sum",)))
    results = json.loads((tmp_path / "again" / "results.json").read_text())
    assert list(results["ranking"]["pass@1"]) == ["random", "sum", "oracle"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": ("median",)}, "--rank must be of mean, sum, back-translation, not 'median'"),
        ({"rank": ("back-translation",)}, "needs a model of docstrings: pass --docstring-run RUN"),
        ({"docstring_run": "RUN"}, "--docstring-run has no effect without --rank back-translation"),
    ],
)
def test_wrong_options_of_ranking(values, message):
    with pytest.raises(UserError, match=message):
        Ranking(**values)


def test_what_cannot_be_ranked(files, tmp_path):
    humaneval, several = load("humaneval", data=files["humaneval"]), Settings(samples=2)
    hot = dataclasses.replace(several, temperature=0.8)
    check_ranking(EVERY, humaneval, hot, None)
    check_ranking(EVERY, humaneval, Settings(samples=2, beams=2, temperature=0.0), None)
    mbpp, docstring = load("mbpp", data=files["mbpp"]), load("docstring", data=files["docstring"])
    cases = [
        (docstring, hot, None, "--rank needs tests, which docstring does not have"),
        (mbpp, hot, None, "--rank back-translation needs docstrings, which mbpp does not have"),
        (humaneval, Settings(temperature=0.8), None, "not among --samples 1 at --temperature 0.8"),
        (humaneval, Settings(samples=2, temperature=0.0), None, "--samples 2 at --temperature 0:"),
        (humaneval, hot, completions("x"), "needs mean_logprob of every sample, and sample 0 of"),
    ]
    for benchmark, settings, samples, message in cases:
        with pytest.raises(UserError, match=message):
            check_ranking(EVERY, benchmark, settings, samples)
    solution = {("HumanEval/0", 0): {"task_id": "HumanEval/0", "sample": 0, "solution": "x"}}
    translation = Ranking(("back-translation",), "RUN")
    with pytest.raises(UserError, match="needs completion of every sample"):
        check_ranking(translation, humaneval, hot, solution)
    options = PromptOptions(files["humaneval"])
    with pytest.raises(UserError, match="--rank chooses among samples of programs"):
        evaluate.prepare("humaneval", False, options, hot, ONE, tmp_path, "", True, EVERY)
