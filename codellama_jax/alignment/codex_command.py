"""`trace-functions` of the command line: problems for Codex-S from projects with tests."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from codellama_jax.alignment import codex_s
from codellama_jax.alignment.commands import SamplingOptions, opened, print_reasons
from codellama_jax.alignment.contests import content_of as content_of_contests
from codellama_jax.alignment.contests import read_contests
from codellama_jax.alignment.projects import content_of, read_project
from codellama_jax.errors import UserError
from codellama_jax.system.files import write_json

MODEL = (
    "The model that must solve a problem with one of its samples: the folder of a run, published"
    " weights as hf:DIR or gguf:FILE, or the URL of a server with OpenAI's interface that continues"
    " texts, as http://127.0.0.1:8000/v1#NAME."
)


@dataclass(frozen=True)
class TraceFunctions:
    """Trace functions while tests run, read contests, keep problems that a model solves."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; the same command continues one that was interrupted."""
    models: Annotated[SamplingOptions, tyro.conf.arg(name="")]
    amounts: Annotated[codex_s.CodexS, tyro.conf.arg(name="")]
    projects: tuple[str, ...] = ()
    """Folders of Python projects with tests for pytest or unittest, which run in the sandbox."""
    contests: tuple[str, ...] = ()
    """Files of contest problems as JSON lines of APPS' fields: question, solutions, input_output
    with inputs and outputs."""
    model: Annotated[str, tyro.conf.arg(help=MODEL)] = ""
    workers: int | None = None
    """How many programs run at once; by default one per core."""

    def __call__(self) -> None:
        """Writes the dataset and prints the counts of each step."""
        # Sampling needs a model, and a model without samples would be loaded for nothing.
        if bool(self.model) != bool(self.amounts.samples):
            fix = "name the model that draws them, or pass --samples 0 without --model"
            shown = self.model or "''"
            raise UserError(f"--model is {shown} and --samples {self.amounts.samples}: {fix}")
        if not self.projects and not self.contests:
            fix = "pass --projects FOLDER or --contests FILE"
            raise UserError(f"there is nothing to make problems of: {fix}")
        projects = [read_project(folder) for folder in self.projects]
        # Names identify functions in all files of the folder.
        names = [project.name for project in projects]
        if len(set(names)) < len(names):
            raise UserError("--projects names two folders of the same name: rename one")
        seed = self.amounts.seed
        model = self.models.continuer(self.model, seed) if self.model else None
        left_out: Counter[str] = Counter()
        contests = read_contests(self.contests, left_out)
        contents = {"content of --projects": content_of(projects)}
        options = dataclasses.asdict(self)
        if contests:
            contents["content of --contests"] = content_of_contests(contests)
        else:
            options.pop("contests")  # folders of older versions have no such option
        free = ("workers", "models.mesh", "amounts.batch")
        out = opened(self.out, options, free, contents)
        from codellama_jax.sandbox.executor import Executor

        with Executor(self.workers) as executor:
            counts = codex_s.make_dataset(
                model, executor, projects, self.amounts, out, {"model": self.model}, contests
            )
        counts = dataclasses.replace(counts, reasons=dict(left_out) | counts.reasons)
        write_json(out / "counts.json", dataclasses.asdict(counts))
        _print(counts, out)


def _print(counts: codex_s.Counts, out: Path) -> None:
    """Prints the counts of each step."""
    print(f"projects             {counts.projects:,}")
    print(f"files of tests       {counts.test_files:,}")
    print(f"contest problems     {counts.contests:,}")
    print(f"functions            {counts.functions:,}")
    print(f"can be a problem     {counts.problems:,}")
    print(f"called by a test     {counts.called:,}")
    print(f"with tests           {counts.with_tests:,}")
    print(f"stable               {counts.stable:,}")
    print(f"kept                 {counts.kept:,}")
    print_reasons(counts.reasons)
    if counts.kept:
        dataset = out / codex_s.DATASET
        print(f"train on it with --corpus.others NAME {dataset}, data.examples completions")
    else:
        print("nothing was kept: there is no data to train on")
