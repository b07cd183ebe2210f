"""What is asked of a model after a stage, and printed in the report. Every host calls it; nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from codellama_jax.benchmarks.suites.perplexity import perplexity_by_length
from codellama_jax.checkpoints.checkpoint import Run
from codellama_jax.config import ProbesConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.infill import infill
from codellama_jax.generation.sampler import Sampling
from codellama_jax.generation.text import complete
from codellama_jax.probes import bigram
from codellama_jax.probes.infilling import (
    Example,
    held_out_examples,
    infilling_by_format,
    single_lines,
)
from codellama_jax.probes.infilling_kinds import infilling_by_kind
from codellama_jax.probes.key_retrieval import retrieval
from codellama_jax.probes.line_ends import pass_by_temperature
from codellama_jax.system.progress import Say, silent

SAMPLES = 8  # lines kept with what was generated for them

Batch = dict[str, np.ndarray]


def run_probes(
    probes: ProbesConfig,
    run: Run,
    validation_texts: Mapping[str, Sequence[str]],
    training_rows: Iterable[Batch],
    validation_rows: Sequence[Batch],
    seq_len: int,
    seed: int,
    say: Say = silent,
) -> dict[str, Any]:
    """Returns what `probes` asks for, ready for JSON: any of perplexity, infilling, infilling_kinds, key_retrieval,
    line_ends, infills, completions, bigram.

    validation_texts: held-out code, `files` whole for perplexity by length, `documents` as the first stage trains on them for
      infilling. The two are the same where files are not cut into blocks.
    training_rows: the packed rows that the model was trained on, read only for the bigram model.
    validation_rows: the packed rows of the validation loss.
    seq_len: how many tokens a document to fill in may have; that of the first stage, so that all stages fill in the same lines.
    say: gets a line before each part, since some take minutes.

    A part that cannot be asked of this model or corpus is a `note` that says why.
    """
    found: dict[str, Any] = {}
    if probes.perplexity_lengths:
        say("perplexity by context length")
        by_length = _answer(
            perplexity_by_length,
            run,
            validation_texts["files"],
            probes.perplexity_lengths,
            probes.perplexity_rows,
        )
        found["perplexity"] = {str(key): value for key, value in by_length.items()}
    if probes.infilling_examples or probes.infills:
        say("infilling of held-out lines")
        found |= _infilling(probes, run, validation_texts["documents"], seq_len, seed)
    if probes.infilling_kinds:
        say("infilling by kind of middle")
        asked = (probes.infilling_kinds, probes.kind_examples, seq_len, probes.max_new_tokens, seed)
        found["infilling_kinds"] = _answer(
            infilling_by_kind, run, validation_texts["documents"], *asked
        )
    if probes.key_lengths:
        say("key retrieval")
        asked = (probes.key_lengths, probes.key_positions, probes.key_examples)
        found["key_retrieval"] = _answer(retrieval, run, validation_texts["files"], *asked)
    if probes.temperatures:
        say("line ends by temperature")
        asked = (probes.temperatures, probes.line_ends, probes.line_end_samples, seq_len, seed)
        found["line_ends"] = _answer(
            pass_by_temperature, run, validation_texts["documents"], *asked
        )
    if probes.completions:
        say("completions")
        texts = complete(run, list(probes.completions), _greedy(probes))
        found["completions"] = [
            {"prompt": p, "completion": text} for p, text in zip(probes.completions, texts)
        ]
    if probes.bigram:
        say("bigram model")
        found["bigram"] = _answer(_bigram, run, training_rows, validation_rows)
    return found


def _answer(probe: Callable[..., dict], *asked: Any) -> dict[Any, Any]:
    try:
        return probe(*asked)
    except UserError as error:  # a small corpus is no reason to lose the other probes
        return {"note": str(error)}


def _infilling(
    probes: ProbesConfig, run: Run, texts: Sequence[str], seq_len: int, seed: int
) -> dict[str, Any]:
    asked = {"infilling": probes.infilling_examples, "infills": probes.infills}
    examples: list[Example] = []
    if run.model.vocab_size < run.tokenizer.vocab_size:
        note = "this model's vocabulary has no infilling sentinels"
    else:
        examples = held_out_examples(
            single_lines,
            run.tokenizer,
            texts,
            max(asked.values()),
            seq_len,
            probes.max_new_tokens,
            seed,
        )
        note = f"no held-out document that fits {seq_len} tokens has a line to fill in"
    if not examples:
        return {name: {"note": note} for name, count in asked.items() if count}
    found: dict[str, Any] = {}
    if probes.infilling_examples:
        measured = examples[: probes.infilling_examples]
        found["infilling"] = infilling_by_format(run, measured, probes.max_new_tokens, SAMPLES)
    if probes.infills:
        shown = examples[: probes.infills]
        texts = infill(run, [(e.prefix, e.suffix) for e in shown], _greedy(probes))
        found["infills"] = [{**e._asdict(), "generated": text} for e, text in zip(shown, texts)]
    return found


def _bigram(
    run: Run, training_rows: Iterable[Batch], validation_rows: Sequence[Batch]
) -> dict[str, Any]:
    model = bigram.fit(training_rows, run.model.vocab_size)
    loss, tokens = model.evaluate(validation_rows)
    return {"loss": loss, "tokens": tokens, "training_tokens": int(model.counts_V.sum())}


def _greedy(probes: ProbesConfig) -> Sampling:
    return Sampling(temperature=0.0, max_new_tokens=probes.max_new_tokens)
