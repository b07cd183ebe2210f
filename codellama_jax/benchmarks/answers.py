"""Prompts a model with the tasks of a benchmark.

Prompts of similar length form a batch. If every host has a full model, each takes a share of the
batch; otherwise all hosts take part in every sample. Each sample has its own PRNG key.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task, temperature_of
from codellama_jax.benchmarks.samples import Key, key, name_of
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.data.functions import Function, example_ids
from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation.infill import infill
from codellama_jax.generation.scoring import document_losses
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import Rows, complete
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import gather

MAX_BATCH = 256  # sequences
SPECIAL_TOKENS = 4  # of one prompt at most: BOS and the three infilling tokens
# Returns the fields of the answer to each task. The keys identify the samples.
AnswerBatch = Callable[[Sequence[Task], Sequence[Key]], list[dict[str, Any]]]


def sampling_of(benchmark: Benchmark, settings: Settings) -> Sampling:
    """Returns how tokens are sampled: by the settings, else as in the benchmark's paper."""
    # Top-k is off (0): the papers sample with top-p alone.
    temperature = temperature_of(benchmark, settings)
    max_new_tokens = settings.max_new_tokens or benchmark.max_new_tokens
    drawn = (temperature, 0, settings.top_p, max_new_tokens, settings.seed)
    return Sampling(*drawn, settings.beams, settings.length_penalty)


def answers(
    model: TrainedModel, benchmark: Benchmark, settings: Settings, done: set[Key]
) -> Iterator[list[Sample]]:
    """Yields the samples that are not in `done`, batch by batch.

    Every host gets the samples of all hosts. A sample depends only on the seed, its task and its
    number, so an evaluation that resumes draws the same samples.
    """
    tasks = {}
    lengths = {}
    for task in benchmark.tasks:
        tasks[task.task_id] = _truncated(model, task, settings.context_tokens)
        lengths[task.task_id] = _length(model, tasks[task.task_id])
    remaining = []
    for task_id in tasks:
        for number in range(settings.samples):
            if (task_id, number) not in done:
                remaining.append((task_id, number))
    # The longest prompts first: if they do not fit into memory, the first batch already fails.
    remaining.sort(key=lambda sample: -lengths[sample[0]])
    sampling = sampling_of(benchmark, settings)
    if benchmark.tasks[0].choices:
        answer_batch = _choice_scorer(model)
    else:
        answer_batch = _completer(model, benchmark, sampling, settings.spm)
    host, hosts = _share(model)
    while remaining:
        longest = lengths[remaining[0][0]] + sampling.max_new_tokens
        batch_size = batch_size_of(longest * settings.beams, settings.batch_tokens) * hosts
        batch, remaining = remaining[:batch_size], remaining[batch_size:]
        # Every host takes each `hosts`-th sample: their lengths are then nearly the same.
        local_batch = batch[host::hosts]
        fields = answer_batch([tasks[task_id] for task_id, _ in local_batch], local_batch)
        local_samples = {}
        for (task_id, number), answer in zip(local_batch, fields):
            sample = {"task_id": task_id, "sample": number, **answer}
            local_samples[name_of(*key(sample))] = sample
        # JSON objects have strings as keys, so samples travel under their names.
        samples = gather(local_samples)
        yield [samples[name_of(*sample_key)] for sample_key in batch]


def _share(model: TrainedModel) -> tuple[int, int]:
    """Returns (index, number) of the share of a batch that this host computes.

    A model that is sharded over the hosts is one share: all hosts compute every sample together.
    """
    # An array that is sharded over several hosts is not fully addressable from any of them.
    is_local = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(model.params))
    return (jax.process_index(), jax.process_count()) if is_local else (0, 1)


def batch_size_of(tokens: int, batch_tokens: int) -> int:
    """Returns how many sequences of `tokens` tokens fit into `batch_tokens`.

    It is a power of two, because `generate` pads the batch to one, and at most MAX_BATCH.
    """
    largest = min(max(1, batch_tokens // tokens), MAX_BATCH)
    return 1 << (largest.bit_length() - 1)


def _completer(
    model: TrainedModel, benchmark: Benchmark, sampling: Sampling, spm: bool
) -> AnswerBatch:
    """Returns the function that answers tasks by sampled text."""

    def answer_batch(tasks: Sequence[Task], keys: Sequence[Key]) -> list[dict[str, Any]]:
        if not tasks:
            return []

        def truncate(row: int, text: str) -> str:
            return benchmark.truncate(tasks[row], text)

        # A number from the sample's name alone is folded into the seed: the sample does not
        # depend on the batch that it is in.
        numbers = [zlib.crc32(name_of(*k).encode()) for k in keys]
        rows = Rows(truncate, numbers, ranks=[number for _, number in keys])
        if benchmark.infilling:
            # `infill` builds the prompt with the special tokens in PSM or SPM order.
            prompts = [(task.prompt, task.suffix) for task in tasks]
            texts = infill(model, prompts, sampling, spm, rows=rows)
        else:
            texts = complete(model, [task.prompt for task in tasks], sampling, rows=rows)
        fields: list[dict[str, Any]] = []
        for task, text in zip(tasks, texts):
            fields.append({"completion": benchmark.finish(task, text)})
        # Codex ranks several samples of a program by these. Greedy samples are all equal.
        is_several = sampling.temperature != 0 or sampling.beams > 1
        if benchmark.checks is not None and is_several:
            for answer, measured in zip(fields, logprobs(model, benchmark, tasks, texts, spm)):
                answer["mean_logprob"], answer["sum_logprob"] = measured
        return fields

    return answer_batch


def logprobs(
    model: TrainedModel,
    benchmark: Benchmark,
    tasks: Sequence[Task],
    texts: Sequence[str],
    spm: bool,
) -> list[tuple[float, float]]:
    """Returns the log-probability of each text after its prompt, its mean per token and its sum.

    They are in nats, at temperature 1. Codex (section 3.3) ranks samples by them. An empty text
    counts as one token that is uniform over the vocabulary.

    Args:
        model: scores the texts.
        benchmark: decides whether the prompts are infilling prompts.
        tasks: the task of each text.
        texts: sampled texts.
        spm: whether infilling prompts are in suffix-prefix-middle order.
    """
    tokenizer = model.tokenizer
    prompts = []
    sequences = []
    for task, text in zip(tasks, texts):
        if benchmark.infilling:
            prompt = prompt_ids(tokenizer, task.prompt, task.suffix, spm)
        else:
            prompt = tokenizer.prompt(task.prompt)
        prompts.append(prompt)
        # The text continues the prompt, so it has no leading space.
        sequences.append([*prompt, *tokenizer.encode(text, leading_space=False)])
    measured = []
    for prompt, losses_T in zip(prompts, document_losses(model, sequences)):
        # losses_T[i] belongs to token i + 1.
        text_losses_T = losses_T[len(prompt) - 1 :].astype(np.float64)
        if not len(text_losses_T):
            text_losses_T = np.array([math.log(tokenizer.vocab_size)])
        measured.append((-float(np.mean(text_losses_T)), -float(np.sum(text_losses_T))))
    return measured


def docstring_logprobs(model: TrainedModel, functions: Sequence[Function]) -> list[float]:
    """Returns the log-probability of the docstring after the code of each function, in nats.

    The text is that of the training examples of a docstring model, its EOS included (Codex-D).
    """
    sequences, starts = [], []
    for function in functions:
        ids, given = example_ids(model.tokenizer, function, "code_to_docstring")
        sequences.append(ids)
        starts.append(given - 1)
    sums = []
    for losses_T, start in zip(document_losses(model, sequences), starts):
        sums.append(-float(np.sum(losses_T[start:], dtype=np.float64)))
    return sums


def _choice_scorer(model: TrainedModel) -> AnswerBatch:
    """Returns the function that answers tasks by the log-likelihoods of their choices."""

    def answer_batch(tasks: Sequence[Task], keys: Sequence[Key]) -> list[dict[str, Any]]:
        fields = []
        for task in tasks:
            likelihoods = log_likelihoods(model, task.prompt, task.choices)
            fields.append({"log_likelihoods": likelihoods})
        return fields

    return answer_batch


def log_likelihoods(model: TrainedModel, prompt: str, choices: Sequence[str]) -> list[float]:
    """Returns the log-probability of each choice after the prompt, in nats."""
    encode = model.tokenizer.prompt
    start = len(encode(prompt))
    # Prompt and choice are encoded together, as in the training data: a token may span both.
    sequences = [encode(prompt + choice) for choice in choices]
    likelihoods = []
    for losses_T in document_losses(model, sequences):
        likelihoods.append(-float(np.sum(losses_T[start - 1 :], dtype=np.float64)))
    return likelihoods


def _truncated(model: TrainedModel, task: Task, tokens: int) -> Task:
    """Returns the task with only the last `tokens` tokens of its prompt; 0 keeps all."""
    ids = model.tokenizer.encode(task.prompt)
    if not tokens or len(ids) <= tokens:
        return task
    # The end of the prompt is kept: it is next to the answer.
    prompt = model.tokenizer.decode(ids[-tokens:], leading_space=False)
    return dataclasses.replace(task, prompt=prompt)


def _length(model: TrainedModel, task: Task) -> int:
    """Returns the number of tokens of a task's prompt and suffix, with special tokens."""
    prompt = model.tokenizer.encode(task.prompt)
    suffix = model.tokenizer.encode(task.suffix)
    return len(prompt) + len(suffix) + SPECIAL_TOKENS
