"""Prompts a model with the tasks of a benchmark.

Samples stream through the slots of the engine, the longest prompts first. If every host has a full
model, each takes a share of the samples; otherwise all hosts take part in every sample. Each sample
has its own PRNG key.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task, with_defaults
from codellama_jax.benchmarks.chat import as_questions, chat_of, question_ids
from codellama_jax.benchmarks.samples import Key, key, name_of
from codellama_jax.benchmarks.settings import Settings
from codellama_jax.data.functions import Function, example_ids
from codellama_jax.data.infilling import prompt_ids
from codellama_jax.errors import UserError
from codellama_jax.generation.answering import generate_answers
from codellama_jax.generation.device import fitting_slots
from codellama_jax.generation.infill import infill_each
from codellama_jax.generation.scoring import document_losses
from codellama_jax.generation.settings import Sampling
from codellama_jax.generation.text import Rows, complete_each
from codellama_jax.models.trained import TrainedModel
from codellama_jax.sharding.hosts import gather, is_first, on_all_hosts
from codellama_jax.system.progress import note
from codellama_jax.tokenizers.chat import ChatFormat

MAX_BATCH = 256  # sequences
SPECIAL_TOKENS = 4  # of one prompt at most: BOS and the three infilling tokens
Answers = list[tuple[int, dict[str, Any]]]  # indices of samples, and their fields
Item = TypeVar("Item")


def sampling_of(benchmark: Benchmark, settings: Settings) -> Sampling:
    """Returns how tokens are sampled: by the settings, else as in the benchmark's paper."""
    # Top-k is off (0): the papers sample with top-p alone.
    settings = with_defaults(benchmark, settings)
    assert settings.temperature is not None and settings.top_p is not None
    max_new_tokens = settings.max_new_tokens or benchmark.max_new_tokens
    drawn = (settings.temperature, 0, settings.top_p, max_new_tokens, settings.seed)
    return Sampling(*drawn, settings.beams, settings.length_penalty)


def answers(
    model: TrainedModel, benchmark: Benchmark, settings: Settings, done: set[Key]
) -> Iterator[list[Sample]]:
    """Yields the samples that are not in `done`, batch by batch, as they are complete.

    Every host gets the samples of all hosts. A sample depends only on the seed, its task and its
    number, so an evaluation that resumes draws the same samples.
    """
    chat = chat_of(settings, model.tokenizer)
    if chat:
        benchmark = as_questions(benchmark)
    tasks = {}
    lengths = {}
    for task in benchmark.tasks:
        tasks[task.task_id] = _truncated(model, task, settings.context_tokens)
        lengths[task.task_id] = _length(model, tasks[task.task_id], chat)
    remaining = []
    for task_id in tasks:
        for number in range(settings.samples):
            if (task_id, number) not in done:
                remaining.append((task_id, number))
    if not remaining:
        return
    # The longest prompts first: if they do not fit into memory, the first batch already fails.
    remaining.sort(key=lambda sample: -lengths[sample[0]])
    sampling = sampling_of(benchmark, settings)
    sizes, most = [], 1 << (len(remaining) - 1).bit_length()
    for task_id, _ in remaining:
        length = (lengths[task_id] + sampling.max_new_tokens) * settings.beams
        sizes.append(min(most, batch_size_of(length, settings.batch_tokens)))
    # Only samples that are drawn take slots of the engine; beam search and scoring have batches.
    if settings.beams == 1 and not benchmark.tasks[0].choices:
        tokens = [lengths[task_id] + sampling.max_new_tokens for task_id, _ in remaining]
        sizes = _fitting(model, sizes, tokens)
    host, hosts = _share(model)
    # Every host takes each `hosts`-th sample: their lengths are then nearly the same.
    local, local_sizes = remaining[host::hosts], sizes[host::hosts]
    local_tasks = [tasks[task_id] for task_id, _ in local]
    if benchmark.tasks[0].choices:
        answered = _scored_choices(model, local_tasks, local_sizes)
    else:
        drawing = _Drawing(model, benchmark, sampling, settings.spm, chat)
        answered = drawing.completed(local_tasks, local, local_sizes)
    yielded = 0
    # Every host takes part in every round, whether it still has samples or not.
    while yielded < len(remaining):
        local_samples = {}
        # A host whose memory does not suffice stops all of them: the others would wait for its
        # samples for ever.
        for index, answer in on_all_hosts(functools.partial(next, answered, [])):
            task_id, number = local[index]
            sample = {"task_id": task_id, "sample": number, **answer}
            local_samples[name_of(*key(sample))] = sample
        # JSON objects have strings as keys, so samples travel under their names.
        samples = gather(local_samples)
        yielded += len(samples)
        yield list(samples.values())


def _share(model: TrainedModel) -> tuple[int, int]:
    """Returns (index, number) of the share of a batch that this host computes.

    A model that is sharded over the hosts is one share: all hosts compute every sample together.
    """
    # An array that is sharded over several hosts is not fully addressable from any of them.
    is_local = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(model.params))
    return (jax.process_index(), jax.process_count()) if is_local else (0, 1)


def batch_size_of(tokens: int, batch_tokens: int) -> int:
    """Returns how many sequences of `tokens` tokens fit into `batch_tokens`.

    It is a power of two, as the shapes of a batch are, and at most MAX_BATCH.
    """
    largest = min(max(1, batch_tokens // tokens), MAX_BATCH)
    return 1 << (largest.bit_length() - 1)


def _fitting(model: TrainedModel, sizes: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Returns how many samples of each length are drawn at once, fewer where memory is short.

    Args:
        model: draws the samples.
        sizes: the most samples at once, for each sample.
        tokens: of each sample with its prompt, the longest first.
    """
    longest: dict[int, int] = {}
    for size, count in zip(sizes, tokens):
        longest.setdefault(size, count)
    local = {}
    for size, count in longest.items():
        local[f"{size} {jax.process_index()}"] = fitting_slots(model, size, count)
    fitting = dict.fromkeys(longest, MAX_BATCH)
    # The least of all hosts, which take part in the same batches.
    for name, slots in gather(local).items():
        size = int(name.split()[0])
        fitting[size] = min(fitting[size], slots)
    for size, slots in fitting.items():
        if slots < size and is_first():
            note(f"memory holds {slots} samples of {longest[size]:,} tokens at once, not {size}")
    return [fitting[size] for size in sizes]


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """How the texts of samples are drawn.

    Attributes:
        model: draws them.
        benchmark: has the prompts, and truncates the texts.
        sampling: how tokens are drawn.
        spm: whether infilling prompts are in suffix-prefix-middle order.
        chat: the format in which tasks are questions; None for completions.
    """

    model: TrainedModel
    benchmark: Benchmark
    sampling: Sampling
    spm: bool
    chat: ChatFormat | None

    def completed(
        self, tasks: Sequence[Task], keys: Sequence[Key], sizes: Sequence[int]
    ) -> Iterator[Answers]:
        """Yields the answers to tasks in batches, as they are complete.

        Args:
            tasks: the task of each sample, those of equal size together.
            keys: of each sample.
            sizes: how many samples of this length are drawn at once.
        """
        is_several = self.sampling.temperature != 0 or self.sampling.beams > 1
        is_ranked = self.benchmark.checks is not None and is_several
        for start, stop in _runs(sizes):
            texts = self._texts(tasks[start:stop], keys[start:stop], sizes[start])
            # Batches of one size, so that few shapes are compiled to score them.
            for batch in _batched(texts, sizes[start]):
                answered = []
                for index, text in batch:
                    answered.append((start + index, self._fields(tasks[start + index], text)))
                # Codex ranks several samples of a program by these. Greedy samples are all equal.
                if is_ranked:
                    self._add_logprobs(answered, tasks, [text for _, text in batch])
                yield answered

    def _fields(self, task: Task, text: str) -> dict[str, Any]:
        if self.chat and self.benchmark.chat:
            return self.benchmark.chat.fields(task, text)
        return {"completion": self.benchmark.finish(task, text)}

    def _add_logprobs(self, answered: Answers, tasks: Sequence[Task], texts: list[str]) -> None:
        answered_tasks = [tasks[index] for index, _ in answered]
        scored = (self.model, self.benchmark, answered_tasks, texts, self.spm, self.chat)
        measured = logprobs(*scored)
        for (_, answer), (mean, total) in zip(answered, measured):
            answer["mean_logprob"], answer["sum_logprob"] = mean, total

    def _texts(
        self, tasks: Sequence[Task], keys: Sequence[Key], slots: int
    ) -> Iterator[tuple[int, str]]:
        """Yields the index of each task and its text, `slots` of which are drawn at once."""
        if self.sampling.beams == 1:
            yield from self._drawn(tasks, keys, slots)
            return
        # A beam search has no slots: each batch starts and ends together.
        for start in range(0, len(tasks), slots):
            batch = slice(start, start + slots)
            for index, text in self._drawn(tasks[batch], keys[batch], slots):
                yield start + index, text

    def _drawn(
        self, tasks: Sequence[Task], keys: Sequence[Key], slots: int
    ) -> Iterator[tuple[int, str]]:
        """Yields the index of each task and its text, as soon as it ends."""

        def truncate(index: int, text: str) -> str:
            return self.benchmark.truncate(tasks[index], text)

        # A number from the sample's name alone is folded into the seed: the sample does not depend
        # on the others that are drawn beside it.
        numbers = [zlib.crc32(name_of(*k).encode()) for k in keys]
        rows = Rows(truncate, numbers, ranks=[number for _, number in keys])
        tokenizer, sampling = self.model.tokenizer, self.sampling
        if self.chat:
            ids = [question_ids(self.chat, tokenizer, task) for task in tasks]
            yield from generate_answers(
                self.model, self.chat, ids, sampling, numbers, slots, rows.ranks
            )
        elif self.benchmark.infilling:
            # `infill_each` builds the prompt with the special tokens in PSM or SPM order.
            pairs = [(task.prompt, task.suffix) for task in tasks]
            arguments = (self.model, pairs, sampling, self.spm)
            for index, middle in infill_each(*arguments, rows=rows, slots=slots):
                yield index, middle.text
        else:
            prompts = [task.prompt for task in tasks]
            yield from complete_each(self.model, prompts, sampling, rows=rows, slots=slots)


def _runs(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the start and the end of each run of equal sizes."""
    start = 0
    for _, run in itertools.groupby(sizes):
        stop = start + len(list(run))
        yield start, stop
        start = stop


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, and the rest."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def logprobs(
    model: TrainedModel,
    benchmark: Benchmark,
    tasks: Sequence[Task],
    texts: Sequence[str],
    spm: bool,
    chat: ChatFormat | None = None,
) -> list[tuple[float, float]]:
    """Returns the log-probability of each text after its prompt, its mean per token and its sum.

    They are in nats, at temperature 1. Codex (section 3.3) ranks samples by them. An empty text
    counts as one token that is uniform over the vocabulary. Raises UserError for a model that has
    diverged, and so do the functions below.

    Args:
        model: scores the texts.
        benchmark: decides whether the prompts are infilling prompts.
        tasks: the task of each text.
        texts: sampled texts.
        spm: whether infilling prompts are in suffix-prefix-middle order.
        chat: the format of conversations whose answers the texts are; None for completions.
    """
    tokenizer = model.tokenizer
    prompts = []
    sequences = []
    for task, text in zip(tasks, texts):
        if chat:
            prompt = question_ids(chat, tokenizer, task)
        elif benchmark.infilling:
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
        total = _logprob(text_losses_T)
        measured.append((total / len(text_losses_T), total))
    return measured


def _logprob(losses_T: np.ndarray) -> float:
    """Returns the log-probability of tokens with these losses, in nats.

    Raises UserError if it is no finite number, which could be neither compared nor stored.
    """
    total = -float(np.sum(losses_T, dtype=np.float64))
    if not math.isfinite(total):
        raise UserError(f"the log-probability of a text is {total}: the model has diverged")
    return total


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
        sums.append(_logprob(losses_T[start:]))
    return sums


def _scored_choices(
    model: TrainedModel, tasks: Sequence[Task], sizes: Sequence[int]
) -> Iterator[Answers]:
    """Yields the log-likelihoods of the choices of tasks, in batches of the largest size."""
    for batch in _batched(enumerate(tasks), max(sizes, default=1)):
        answered = []
        for index, task in batch:
            likelihoods = log_likelihoods(model, task.prompt, task.choices)
            answered.append((index, {"log_likelihoods": likelihoods}))
        yield answered


def log_likelihoods(model: TrainedModel, prompt: str, choices: Sequence[str]) -> list[float]:
    """Returns the log-probability of each choice after the prompt, in nats."""
    encode = model.tokenizer.prompt
    start = len(encode(prompt))
    # Prompt and choice are encoded together, as in the training data: a token may span both.
    sequences = [encode(prompt + choice) for choice in choices]
    likelihoods = []
    for losses_T in document_losses(model, sequences):
        likelihoods.append(_logprob(losses_T[start - 1 :]))
    return likelihoods


def _truncated(model: TrainedModel, task: Task, tokens: int) -> Task:
    """Returns the task with only the last `tokens` tokens of its prompt; 0 keeps all."""
    ids = model.tokenizer.encode(task.prompt)
    if not tokens or len(ids) <= tokens:
        return task
    # The end of the prompt is kept: it is next to the answer.
    prompt = model.tokenizer.decode(ids[-tokens:], leading_space=False)
    return dataclasses.replace(task, prompt=prompt)


def _length(model: TrainedModel, task: Task, chat: ChatFormat | None) -> int:
    """Returns the number of tokens of a task's prompt and suffix, with special tokens."""
    if chat:
        return len(question_ids(chat, model.tokenizer, task))
    prompt = model.tokenizer.encode(task.prompt)
    suffix = model.tokenizer.encode(task.suffix)
    return len(prompt) + len(suffix) + SPECIAL_TOKENS
