"""Asks a model the tasks of a benchmark.

Batches of like length, each host its share or all together, every sample's chance its own.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task, temperature_of
from codellama_jax.benchmarks.samples import Key, key, name_of
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.data.infilling import prompt_ids
from codellama_jax.generation.infill import infill
from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.scoring import document_losses
from codellama_jax.generation.text import Rows, complete
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import gather

MOST_ROWS = 256


def sampling_of(benchmark: Benchmark, settings: Settings) -> Sampling:
    """Returns how tokens are drawn: as the settings say, else as the benchmark's paper did."""
    temperature = temperature_of(benchmark, settings)
    max_new_tokens = settings.max_new_tokens or benchmark.max_new_tokens
    return Sampling(temperature, 0, settings.top_p, max_new_tokens, settings.seed)


def answers(
    model: TrainedModel, benchmark: Benchmark, settings: Settings, done: set[Key]
) -> Iterator[list[Sample]]:
    """Yields the samples that are not done, batch by batch, on every host those of all hosts.

    A sample hangs on the seed, its task and its number alone, so a run that goes on draws what it
    would have drawn.
    """
    tasks = {
        task.task_id: _shortened(model, task, settings.context_tokens) for task in benchmark.tasks
    }
    wanted = [
        (task_id, number)
        for task_id in tasks
        for number in range(settings.samples)
        if (task_id, number) not in done
    ]
    lengths = {task_id: _length(model, task) for task_id, task in tasks.items()}
    wanted.sort(key=lambda k: -lengths[k[0]])  # the longest first: what does not fit fails at once
    sampling = sampling_of(benchmark, settings)
    ask = (
        _chooser(model)
        if benchmark.tasks[0].choices
        else _writer(model, benchmark, sampling, settings.spm)
    )
    host, hosts = _share(model)
    while wanted:
        rows = rows_at_once(lengths[wanted[0][0]] + sampling.max_new_tokens, settings.batch_tokens)
        batch, wanted = wanted[: rows * hosts], wanted[rows * hosts :]
        mine = batch[host::hosts]
        found = [
            {"task_id": k[0], "sample": k[1], **answer}
            for k, answer in zip(mine, ask([tasks[k[0]] for k in mine], mine))
        ]
        there = gather({name_of(*key(sample)): sample for sample in found})
        yield [there[name_of(*k)] for k in batch]


def _share(model: TrainedModel) -> tuple[int, int]:
    """Returns which of how many shares this host asks.

    All of them, as the other hosts do, where one model lies on all hosts.
    """
    alone = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(model.params))
    return (jax.process_index(), jax.process_count()) if alone else (0, 1)


def rows_at_once(tokens: int, batch_tokens: int) -> int:
    """Returns a power of two, as `generate` pads to one."""
    return 1 << min(max(1, batch_tokens // tokens), MOST_ROWS).bit_length() - 1


def _writer(
    model: TrainedModel, benchmark: Benchmark, sampling: Sampling, spm: bool
) -> Callable[[Sequence[Task], Sequence[Key]], list[dict]]:
    def write(tasks: Sequence[Task], keys: Sequence[Key]) -> list[dict]:
        if not tasks:
            return []
        rows = Rows(
            lambda row, text: benchmark.cut(tasks[row], text),
            [zlib.crc32(name_of(*k).encode()) for k in keys],
        )
        if benchmark.infilling:
            texts = infill(
                model, [(task.prompt, task.suffix) for task in tasks], sampling, spm, rows=rows
            )
        else:
            texts = complete(model, [task.prompt for task in tasks], sampling, rows=rows)
        found = [{"completion": benchmark.finish(task, text)} for task, text in zip(tasks, texts)]
        if benchmark.checks is None or sampling.temperature == 0:
            return found
        return [
            {**one, "mean_logprob": mean}
            for one, mean in zip(found, mean_logprobs(model, benchmark, tasks, texts, spm))
        ]

    return write


def mean_logprobs(
    model: TrainedModel,
    benchmark: Benchmark,
    tasks: Sequence[Task],
    texts: Sequence[str],
    spm: bool,
) -> list[float]:
    """Returns the mean log p in nats, at temperature 1, of the tokens of each text after its
    prompt: what Codex ranks samples by.

    A text of no tokens counts as one guessed among the vocabulary.
    """
    tokenizer = model.tokenizer
    if benchmark.infilling:
        prompts = [prompt_ids(tokenizer, task.prompt, task.suffix, spm) for task in tasks]
    else:
        prompts = [[tokenizer.bos_id, *tokenizer.encode(task.prompt)] for task in tasks]
    wholes = [
        [*prompt, *tokenizer.encode(text, leading_space=False)]
        for prompt, text in zip(prompts, texts)
    ]
    losses = [
        losses[len(prompt) - 1 :] for prompt, losses in zip(prompts, document_losses(model, wholes))
    ]
    return [
        -float(np.mean(some, dtype=np.float64)) if len(some) else -math.log(tokenizer.vocab_size)
        for some in losses
    ]


def _chooser(model: TrainedModel) -> Callable[[Sequence[Task], Sequence[Key]], list[dict]]:
    def weigh(tasks: Sequence[Task], keys: Sequence[Key]) -> list[dict]:
        return [
            {"log_likelihoods": log_likelihoods(model, task.prompt, task.choices)} for task in tasks
        ]

    return weigh


def log_likelihoods(model: TrainedModel, prompt: str, choices: Sequence[str]) -> list[float]:
    """Returns log p of each choice after the prompt, in nats."""
    encode = lambda text: [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    start, wholes = len(encode(prompt)), [encode(prompt + choice) for choice in choices]
    return [
        -float(np.sum(losses[start - 1 :], dtype=np.float64))
        for losses in document_losses(model, wholes)
    ]


def _shortened(model: TrainedModel, task: Task, tokens: int) -> Task:
    ids = model.tokenizer.encode(task.prompt)
    if not tokens or len(ids) <= tokens:
        return task
    return dataclasses.replace(
        task, prompt=model.tokenizer.decode(ids[-tokens:], leading_space=False)
    )


def _length(model: TrainedModel, task: Task) -> int:
    # BOS and sentinels
    return len(model.tokenizer.encode(task.prompt)) + len(model.tokenizer.encode(task.suffix)) + 4
