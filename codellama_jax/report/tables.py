"""Adds the tables of stages, model and corpus to a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from codellama_jax.config import ModelConfig, TokenizerConfig
from codellama_jax.models.accounting import parameter_count, stage_tokens
from codellama_jax.models.family import family_of
from codellama_jax.report.page import Page
from codellama_jax.report.plan import short
from codellama_jax.report.reading import is_number, read_object
from codellama_jax.report.results import StageResult, unit_of

# What `Stage.objective` minimises, for ranked pairs.
LOSSES = {
    "rrtf": "rrtf: rank + fine-tuning, its sum over the teacher's tokens",
    "rrtf_mean": "rrtf_mean: rank + fine-tuning, its mean over the teacher's tokens",
    "rrhf": "rrhf: rank with equal differences + fine-tuning, its mean over the teacher's tokens",
    "chosen": "chosen: fine-tuning alone, its sum over the teacher's tokens",
}
SPLITS = ("train", "validation")
NAMED = 3  # at most so many stages are named in the heading of their model


def stages_section(page: Page, stages: Sequence[StageResult]) -> None:
    """Adds a table with a row for each stage: plan, speed and losses."""
    page.heading("Stages")
    # A column appears only if some stage has a value: MFU is logged only on devices of known peak.
    has_mfu = any("mfu" in line for result in stages for line in result.training)
    has_bigram = any("bigram" in result.probes for result in stages)
    plan = ["stage", "parameters", "tokens", "steps", "batch", "learning rate", "time"]
    rates = ["tokens / s", "FLOP / s"]
    if has_mfu:
        rates.append("MFU (causal)")
    losses = ["validation loss"]
    if has_bigram:
        losses.append("bigram")
    rows = []
    for result in stages:
        # MFU and the bigram's loss are the last cells, which are left out without a column.
        speed = _speed_cells(result)[: len(rates)]
        rows.append([*_plan_cells(result), *speed, *_loss_cells(result)[: len(losses)]])
    page.table([*plan, *rates, *losses], rows)
    page.note(
        "Tokens: those trained on, of all positions in the packed sequences; the others are"
        " padding. The command plan prints positions. Batch: sequences × positions. Losses in"
        f" {unit_of(stages)}, at the first and the last validation, and their ratio. Time: training"
        " and validation. Rates: medians over the logged steps, padding included."
    )
    if has_bigram:
        page.note(
            "The bigram model (interpolated modified Kneser-Ney) is fitted to all tokens that the"
            " stage and those whose weights it continues trained on, and evaluated on the stage's"
            " validation sequences."
        )
    _ranked_table(page, [result for result in stages if result.is_ranked])


def _ranked_table(page: Page, stages: Sequence[StageResult]) -> None:
    """Adds the two parts of the loss of stages that train on ranked pairs."""
    rows = []
    for result in stages:
        cells = [result.name, LOSSES[result.stage.objective]]
        for name in ("rank_loss", "tuning_loss"):
            # The parts of the loss are logged for ranked objectives only.
            values = [line[name] for line in result.training if name in line]
            cells.append(f"{values[0]:.3f} → {values[-1]:.3f}" if values else "")
        rows.append(cells)
    if not rows:
        return
    page.table(["stage", "loss", "rank", "fine-tuning"], rows)
    page.note(
        "Of ranked pairs, at the first and the last logged step, in nats per pair. Rank: the"
        " difference of the scores times the mean log-probability by which the student's answer is"
        " more likely, 0 where it is not. Tokens above count pairs."
    )


def _plan_cells(result: StageResult) -> list[str]:
    """Returns the cells from the name to the time, with planned numbers if it was not trained."""
    stage, rate = result.stage, result.stage.optimizer
    last = result.training[-1] if result.training else {"step": 0, "tokens": 0}
    steps = f"{stage.steps:,}"
    if last["step"] != stage.steps:
        step = f"{last['step']:,.0f}"
        steps = f"{step} of {steps}" if result.measured else f"{steps}, not run"
    # The plan counts positions; training logs the tokens among them that are not padding.
    tokens = f"{short(stage_tokens(stage))} planned"
    if result.training:
        # Positions of all packed sequences, of which `tokens` counts those without padding.
        positions = last["step"] * stage.data.batch_size * stage.data.seq_len
        tokens = f"{short(last['tokens'])} of {short(positions)}"
    elif not stage.steps:
        tokens = "0"
    return [
        result.name,
        short(parameter_count(stage.model)),
        tokens,
        steps,
        f"{stage.data.batch_size:,} × {stage.data.seq_len:,}",
        f"{rate.peak_lr:.3g} → {rate.peak_lr * rate.final_fraction:.2g}",
        duration(result.seconds) if result.measured else "",
    ]


def _speed_cells(result: StageResult) -> list[str]:
    """Returns medians of tokens/s, FLOP/s and MFU, "" for a number that was not logged."""
    flops = _median(result, "flops_per_second")
    # The causal MFU counts only the half of the attention that the mask leaves.
    mfu, causal = _median(result, "mfu"), _median(result, "mfu_causal")
    return [
        number(_median(result, "tokens_per_second"), ",.0f"),
        "" if flops is None else short(flops, billion="G"),
        number(mfu, ".1%") if causal is None else f"{number(mfu, '.1%')} ({causal:.1%})",
    ]


def _median(result: StageResult, key: str) -> float | None:
    # Not the mean: a compilation or a pause makes single steps much slower.
    values = [line[key] for line in result.training if key in line]
    return statistics.median(values) if values else None


def _loss_cells(result: StageResult) -> list[str]:
    """Returns the first and the last validation loss with their ratio, and the bigram's loss."""
    losses = [line["validation_loss"] for line in result.validation]
    change = ""
    if losses:
        # A first loss of exactly 0 has no ratio.
        ratio = f" ({losses[-1] / losses[0]:.2f} ×)" if losses[0] else ""
        change = f"{losses[0]:.3f} → {losses[-1]:.3f}{ratio}"
    return [change, number(bigram_loss(result), ".3f")]


def bigram_loss(result: StageResult) -> float | None:
    """Returns the validation loss of the bigram model, None if it is missing or damaged."""
    bigram = result.probes.get("bigram")
    if not isinstance(bigram, dict) or not is_number(bigram.get("loss")):
        return None
    return float(bigram["loss"])


def cost_note(page: Page, out: epath.Path, seeds: int, results: Sequence[StageResult]) -> None:
    """Adds the time that the stages of all seeds took, of those equal to another one once."""
    # Equal stages are trained in one folder, whether of this run (`out`) or of an earlier one.
    seconds = {result.trained_at: result.seconds for result in results if result.measured}
    here = [time for folder, time in seconds.items() if epath.Path(folder).is_relative_to(out)]
    page.note(
        f"The table shows the stages of the first seed. All {seeds} seeds have {len(seconds)}"
        f" different stages, which took {duration(sum(seconds.values()))} without probes. This run"
        f" trained {len(here)} of them in {duration(sum(here))} and read the others from earlier"
        " runs."
    )


def model_section(page: Page, stages: Sequence[StageResult], tokenizer: TokenizerConfig) -> None:
    """Adds a table with a column for each different model config, and a note on the tokenizer."""
    # Stages of an experiment mostly share one model, so that columns are per model, not per stage.
    stages_of: dict[ModelConfig, list[str]] = {}
    for result in stages:
        stages_of.setdefault(result.stage.model, []).append(result.name)
    page.heading("Model")
    columns = [_model_cells(model) for model in stages_of]
    rows = []
    # All models have the same cells, so that those of the first one name the rows.
    for name in columns[0]:
        rows.append((name, *(cells[name] for cells in columns)))
    page.table(("", *map(_label, stages_of.values())), rows)
    vocabulary = f"{tokenizer.pieces:,} pieces trained on the corpus"
    if tokenizer.path:
        vocabulary = f"the pieces of {tokenizer.path}"
    kind = "SentencePiece" if tokenizer.kind == "sentencepiece" else "byte-level BPE"
    # The kind of a file is in the file, which the report does not read.
    prefix = "" if tokenizer.path else f"{kind}, "
    page.note(f"Tokenizer: {prefix}{vocabulary}, then the infilling sentinels.")
    page.note("config.json in the run's folder holds the full config.")


def _label(names: Sequence[str]) -> str:
    """Returns the heading of a model: the names of its stages."""
    label = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return f"{label} and {more} more" if more > 0 else label


def _model_cells(model: ModelConfig) -> dict[str, str]:
    return {
        "parameters": f"{parameter_count(model):,}",
        "layers": f"{model.n_layers}",
        "width": f"{model.d_model:,}",
        "query heads × dimension": f"{model.n_heads} × {model.head_dim}",
        "key/value heads": f"{model.n_kv_heads}",
        "feed-forward width": f"{model.d_ff:,}",
        "vocabulary": f"{model.vocab_size:,}",
        "positions": family_of(model).positions(model),
        "compute dtype": model.compute_dtype,
    }


def corpus_section(page: Page, path: epath.Path) -> None:
    """Adds a table with a column for each source: its files, and its documents by their limit.

    `path` is that of corpus.json, where an entry is named "SOURCE" or "SOURCE, LIMIT".
    """
    counts_of, damage = read_object(path)
    for line in damage:
        page.note(f"Damaged file: {line}")
    sources: dict[str, dict[str, int]] = {}
    for name, counts in counts_of.items():
        # Sources that are read with several limits have one column: their files are the same.
        source, _, limit = name.partition(", ")
        column = sources.setdefault(source, {})
        for key, count in counts.items():
            # Only the numbers of documents depend on the limit.
            if key in SPLITS:
                column[f"{key} documents, {limit or 'complete files'}"] = count
            else:
                column[key.replace("_", " ")] = count
    if not sources:
        return
    page.heading("Corpus")
    keys: dict[str, None] = {}  # a dict keeps the order of insertion
    for column in sources.values():
        keys |= dict.fromkeys(column)
    rows = []
    for key in keys:
        rows.append((key, *(number(column.get(key), ",") for column in sources.values())))
    page.table(("", *sources), rows)
    page.note("Files and characters used, then files dropped by reason, then documents.")
    page.note("All documents of one file are in the same split.")


def data_section(page: Page, counts_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Adds a table of the data that models wrote, with a column for each arm and data stage.

    `counts_of` has the counts of every seed by the name of the column, as `DataStage.make` returns
    them; a seed whose data are not complete is left out.
    """
    columns: dict[str, dict[str, list[int]]] = {}
    for name, seeds in counts_of.items():
        column = columns.setdefault(name, {})
        for counts in seeds:
            # Steps first and reasons after them, in one column.
            steps = {step: count for step, count in counts.items() if step != "reasons"}
            for step, count in (steps | counts.get("reasons", {})).items():
                column.setdefault(step, []).append(count)
    if not any(columns.values()):
        return
    page.heading("Data that models wrote")
    keys: dict[str, None] = {}
    for column in columns.values():
        keys |= dict.fromkeys(column)
    rows = []
    for key in keys:
        cells = [_spread(column[key]) if key in column else "" for column in columns.values()]
        rows.append((key.replace("_", " "), *cells))
    page.table(("", *columns), rows)
    page.note(
        "The steps in their order, then reasons for which something was not used. Of several seeds:"
        " the mean, the least and the most."
    )


def _spread(counts: Sequence[int]) -> str:
    """Returns the mean of counts and, if there are several, the least and the most."""
    mean = f"{statistics.fmean(counts):,.0f}"
    return mean if len(counts) == 1 else f"{mean} ({min(counts):,} to {max(counts):,})"


def number(value: float | None, form: str) -> str:
    """Returns a number in a format of Python, "" for None."""
    return "" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """Returns a time as text, such as "1 h 5 min", "5 min 3 s" or "4 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
