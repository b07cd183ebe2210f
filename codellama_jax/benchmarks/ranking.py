"""Ranking: which one of several samples of a task to show, without running tests (Codex).

Chen et al. 2021, section 3.3 and section 5: by the mean log-probability of a sample's tokens, by
their sum, and by back-translation, the probability of the task's docstring after the sample under a
model of docstrings (Codex-D). Of 100 samples at temperature 0.8, Codex-S 12B passes 44.5 % by the
mean and 77.5 % by an oracle that knows the tests; the sum may be worse than a random sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from codellama_jax.benchmarks.benchmark import Benchmark, Sample
from codellama_jax.benchmarks.fields import NUMBER, TEXT
from codellama_jax.benchmarks.pass_at_k import pass_at_k, ranked_pass_at_k
from codellama_jax.benchmarks.samples import Key, append, continue_file, key, make_folder, name_of
from codellama_jax.benchmarks.scoring import Result
from codellama_jax.benchmarks.settings import AUTO, BACK_TRANSLATION, NO_CHAT, Ranking, Settings
from codellama_jax.errors import UserError
from codellama_jax.sharding.hosts import gather, is_first, on_all_hosts
from codellama_jax.system.progress import counted

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel

# The field of a sample that each ranking compares; the highest is best.
FIELDS = {"mean": "mean_logprob", "sum": "sum_logprob", BACK_TRANSLATION: "docstring_logprob"}
FILE = "back_translation.jsonl"
FILE_FIELDS = {"completion": TEXT, "docstring_run": TEXT, "docstring_logprob": NUMBER}
BATCH = 64  # samples whose docstrings are scored between two lines of progress


def check_ranking(
    ranking: Ranking,
    benchmark: Benchmark,
    settings: Settings,
    samples: Mapping[Key, Sample] | None,
) -> None:
    """Raises UserError for a ranking that the benchmark, settings or samples do not allow.

    Args:
        ranking: the rankings to report.
        benchmark: what is measured.
        settings: with a temperature.
        samples: those that were read; None if a model draws them.
    """
    if not ranking.rank:
        return
    if benchmark.checks is None:
        raise UserError(f"--rank needs tests, which {benchmark.name} does not have: leave it out")
    if BACK_TRANSLATION in ranking.rank and benchmark.documented is None:
        raise UserError(
            f"--rank {BACK_TRANSLATION} needs docstrings, which {benchmark.name} does not have"
        )
    if BACK_TRANSLATION in ranking.rank and settings.chat_format not in (AUTO, NO_CHAT):
        raise UserError(
            f"--rank {BACK_TRANSLATION} needs completions of a function, and answers in"
            f" --chat-format {settings.chat_format} are programs: pass --chat-format {NO_CHAT}"
        )
    if samples is not None:
        # Samples that exist are judged by their fields; how they were drawn no longer matters.
        _check_fields(ranking, samples)
        return
    is_drawn = settings.temperature != 0 or settings.beams > 1
    if settings.samples == 1 or not is_drawn:
        raise UserError(
            f"--rank chooses among different samples of a task, not among --samples"
            f" {settings.samples} at --temperature {settings.temperature:g}: pass more of both"
        )


def _check_fields(ranking: Ranking, samples: Mapping[Key, Sample]) -> None:
    """Raises UserError if samples lack a field that is ranked by."""
    for sample in samples.values():
        for name in ranking.rank:
            # A docstring model adds its field to any completion.
            field = "completion" if name == BACK_TRANSLATION else FIELDS[name]
            if field not in sample:
                raise UserError(
                    f"--rank {name} needs {field} of every sample, and sample {sample['sample']} of"
                    f" {sample['task_id']} has none: draw the samples with --run"
                )


def back_translated(
    model: TrainedModel,
    run: str,
    benchmark: Benchmark,
    samples: Mapping[Key, Sample],
    out: Path,
) -> dict[Key, Sample]:
    """Returns the samples with `docstring_logprob`, in nats.

    It is the log-probability of the task's docstring after the signature and the completion, in the
    form of the training examples of a docstring model (`data/functions.py`). Scores are added to
    `out`/back_translation.jsonl, and those that it has are not computed again. All hosts call this.

    Args:
        model: the docstring model.
        run: the folder that it is from: scores of another one are computed again.
        benchmark: has the docstrings.
        samples: by task and number.
        out: the folder of the evaluation.
    """
    from codellama_jax.benchmarks.answers import docstring_logprobs

    is_writer = is_first()
    path = out / FILE

    def stored_scores() -> dict[str, float]:
        # Only the first host reads the file: the others may not see the same file system.
        if not is_writer:
            return {}
        make_folder(out)
        scores = {}
        for line in continue_file(path, FILE_FIELDS):
            # A score counts only for the very text and model that it was computed with.
            sample = samples.get(key(line), {})
            is_same = sample.get("completion") == line["completion"]
            if is_same and line["docstring_run"] == run:
                scores[name_of(*key(line))] = line["docstring_logprob"]
        return scores

    # Every host needs the scores to skip the same samples: all of them score each batch together.
    scores = gather(on_all_hosts(stored_scores))
    tasks = {task.task_id: task for task in benchmark.tasks}
    names = [name for name in samples if name_of(*name) not in scores]
    # Samples of similar length form a batch.
    names.sort(key=lambda name: len(samples[name]["completion"]))
    assert benchmark.documented is not None
    total, done = len(samples), len(samples) - len(names)
    with counted("docstrings scored", total, done, quiet=not is_writer) as advance:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            functions = []
            for name in batch:
                functions.append(benchmark.documented(tasks[name[0]], samples[name]["completion"]))
            lines = []
            for name, score in zip(batch, docstring_logprobs(model, functions)):
                scores[name_of(*name)] = score
                line = {"task_id": name[0], "sample": name[1], "docstring_run": run}
                completion = samples[name]["completion"]
                lines.append({**line, "completion": completion, "docstring_logprob": score})
            if is_writer:
                append(path, lines)
            advance(len(batch))
    ranked = {}
    for name, sample in samples.items():
        ranked[name] = {**sample, "docstring_logprob": scores[name_of(*name)]}
    return ranked


def summarise_ranking(
    ranking: Ranking, results: Sequence[Result], samples: Mapping[Key, Sample]
) -> dict[str, Any]:
    """Returns pass@1 in percent of the sample that each ranking puts first.

    Beside them are `random`, the mean over all samples, and `oracle`, which finds a sample that
    passes where there is one.

    Args:
        ranking: the rankings to report.
        results: with verdicts.
        samples: with the fields of FIELDS.
    """
    by_task: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_task[result["task_id"]].append({**result, **samples[key(result)]})
    counts = [len(members) for members in by_task.values()]
    # pass@1 of each task, by the ranking that chooses its sample.
    pass_rates: dict[str, list[float]] = defaultdict(list)
    for members in by_task.values():
        passed = [member["passed"] for member in members]
        # pass@1 of n samples with c that pass is c / n.
        pass_rates["random"].append(pass_at_k(len(passed), sum(passed), 1))
        for name in ranking.rank:
            scores = [member[FIELDS[name]] for member in members]
            # The share of tasks whose first-ranked sample passes: k = 1.
            pass_rates[name].append(ranked_pass_at_k(passed, scores, 1))
        pass_rates["oracle"].append(float(any(passed)))
    measures = {name: 100 * float(np.mean(values)) for name, values in pass_rates.items()}
    return {"fewest samples": min(counts), "most samples": max(counts), "pass@1": measures}


def ranking_table(summary: Mapping[str, Any]) -> Table:
    """Returns the table of `summarise_ranking`'s result."""
    fewest, most = summary["fewest samples"], summary["most samples"]
    count = str(most) if fewest == most else f"{fewest} to {most}"
    table = Table(title=f"pass@1 of one of {count} samples, chosen by; percent")
    for name in summary["pass@1"]:
        table.add_column(name)
    table.add_row(*[f"{value:.1f}" for value in summary["pass@1"].values()])
    return table
