"""Log-probabilities that benchmarks read from a model equal a direct computation."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codellama_jax.benchmarks import answers
from codellama_jax.benchmarks.benchmark import files_of
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.benchmarks.suites import SUITES, load
from codellama_jax.benchmarks.summary import summarise
from codellama_jax.errors import UserError
from codellama_jax.generation.text import whole_characters
from codellama_jax.models.llama.model import Llama


def forward(model):
    """Returns a function from ids [T] to log-probabilities [T, V], without a cache."""

    @jax.jit
    def log_probabilities(ids_T):
        positions_T = jnp.arange(len(ids_T))
        logits_BTV = Llama(model.config).apply(
            {"params": model.params}, ids_T[None], positions_T[None]
        )
        return jax.nn.log_softmax(logits_BTV[0])

    return lambda ids: log_probabilities(jnp.array(ids))


def test_key_prompts_have_their_length_and_are_answered_as_without_a_cache(model, files):
    options = {"lengths": (200, 400), "positions": (0.0, 0.5), "examples": 2}
    benchmark = load("key_retrieval", model.tokenizer, data=files["filler"], **options)
    assert len(benchmark.tasks) == len({task.prompt for task in benchmark.tasks}) == 8
    with pytest.raises(UserError, match="--lengths 10 has no room for the key, which takes"):
        load("key_retrieval", model.tokenizer, data=files["filler"], lengths=(10,))
    log_p = forward(model)
    [batch] = answers.answers(model, benchmark, Settings(max_new_tokens=3), set())
    written = {sample["task_id"]: sample["completion"] for sample in batch}
    for task in benchmark.tasks:
        length, position = task.group.split("@")
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(task.prompt)]
        assert int(length) - 30 < len(ids) <= int(length)
        before, after = (
            len(model.tokenizer.encode(part))
            for part in re.split(r"\ndef my_function.*?\n\n", task.prompt, flags=re.S)
        )
        assert abs(before / (before + after) - float(position)) < 0.15
        assert f"    return {task.record['value']}\n" in task.prompt and task.prompt.endswith(
            "\nassert my_function() == "
        )
        prompt, padded = len(ids), int(length) + 8
        for _ in range(3):
            ids.append(
                int(
                    log_p(ids + [0] * (padded - len(ids)))[
                        len(ids) - 1, : model.tokenizer.vocab_size
                    ].argmax()
                )
            )
        new = ids[prompt:]
        new = new[: new.index(model.tokenizer.eos_id)] if model.tokenizer.eos_id in new else new
        expected = whole_characters(
            lambda ids: model.tokenizer.decode(ids, leading_space=False),
            new,
            model.tokenizer.unfinished,
        )
        assert written[task.task_id] == benchmark.truncate(task, expected)


def test_likelihoods_and_perplexity_are_those_of_a_direct_computation(model, files):
    prompt, choices = "def name_1(x):\n", (" return", "    return x + 12", "é")

    def encode(text):
        return [model.tokenizer.bos_id, *model.tokenizer.encode(text)]

    log_p, start = forward(model), len(encode(prompt))
    for choice, likelihood in zip(choices, answers.log_likelihoods(model, prompt, choices)):
        ids = encode(prompt + choice)
        log_p_TV = log_p(ids)
        expected = sum(float(log_p_TV[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert likelihood == pytest.approx(expected, rel=1e-5)
    suite = SUITES["perplexity"]
    options = suite.options(data=files["filler"], lengths=(32, 64), examples=1)
    measures = suite.measure(model, options)["measures"]
    text = files_of(files["filler"], (".py",))[0].read_text()
    ids = encode(text)[:65]
    losses = np.array([-float(log_p(ids)[i, ids[i + 1]]) for i in range(64)])
    assert np.log(measures["32 perplexity"]) == pytest.approx(losses[:32].mean(), rel=1e-5)
    assert np.log(measures["64 last_block"]) == pytest.approx(losses[48:].mean(), rel=1e-5)


def test_samples_are_ranked_by_the_mean_log_probability_of_their_tokens(model, files):
    benchmark = load("humaneval", data=files["humaneval"])
    texts, log_p = ("\n    return x\n", ""), forward(model)
    (written, total), empty = answers.logprobs(model, benchmark, benchmark.tasks, texts, False)
    before = [model.tokenizer.bos_id, *model.tokenizer.encode(benchmark.tasks[0].prompt)]
    new = model.tokenizer.encode(texts[0], leading_space=False)
    rows = log_p(before + new)
    assert written == pytest.approx(
        np.mean([rows[len(before) + i - 1, token] for i, token in enumerate(new)]), rel=1e-5
    )
    assert total == pytest.approx(written * len(new)) and len(new) > 1
    assert empty == pytest.approx((-np.log(model.tokenizer.vocab_size),) * 2)
    passed = {"HumanEval/0": (False, True, True), "HumanEval/1": (True, False, True)}
    results = []
    for task_id, verdicts in passed.items():
        for i in range(3):
            result = {"task_id": task_id, "sample": i, "passed": verdicts[i]}
            results.append({**result, "mean_logprob": -1.0 - i})
    assert summarise(benchmark, results)["measures"]["pass@1 ranked"] == 50
    del results[0]["mean_logprob"]
    assert "pass@1 ranked" not in summarise(benchmark, results)["measures"]


def test_choices_are_weighed(files):
    benchmark = load("truthfulqa", data=files["truthfulqa"])
    task = benchmark.tasks[3]
    assert (
        task.prompt.count("Q: ") == 7
        and task.prompt.endswith("Q: What is 3?\nA:")
        and task.prompt.count("What is 3?") == 1
    )
    even = {"log_likelihoods": [-1.0, -2.0, np.log(0.2), np.log(0.2), np.log(0.6)]}
    assert benchmark.judge(task, even) == {"mc1": 1.0, "mc2": pytest.approx(0.4)}
    equal = {"log_likelihoods": [-2.0, -2.0, -1.0, -1.0, -1.0]}
    assert benchmark.judge(task, equal) == {"mc1": 0.0, "mc2": pytest.approx(2 / 3)}


def test_a_model_that_has_diverged_has_no_log_probabilities(model, files):
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    diverged = dataclasses.replace(model, params=params)
    with pytest.raises(UserError, match="text is nan: the model has diverged"):
        answers.log_likelihoods(diverged, "def f(x):\n", (" return", " x"))
    benchmark = load("humaneval", data=files["humaneval"])
    with pytest.raises(UserError, match="text is nan: the model has diverged"):
        answers.logprobs(diverged, benchmark, benchmark.tasks[:1], ["\n    return x\n"], False)
