"""`rank` of the command line: pairs of answers for the objectives rrtf, rrtf_mean and rrhf."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from codellama_jax.alignment import evol_prompts
from codellama_jax.alignment.answers import Answerer
from codellama_jax.alignment.commands import MODEL, ModelOptions, opened, print_reasons
from codellama_jax.alignment.model_names import repeated_model
from codellama_jax.alignment.pairs import PAIRS, Sampled, hash_of, make_pairs, read_tasks
from codellama_jax.checked import Range
from codellama_jax.errors import UserError
from codellama_jax.system.files import write_json

TASKS = (
    "The tasks: JSON lines with `prompt` or `messages`, and `tests`, a list of assert statements;"
    " self-instruct writes such a file."
)


@dataclass(frozen=True)
class RankedModelOptions(ModelOptions):
    """How the models that are ranked answer: at each of several temperatures."""

    # No option beside --temperatures; the settings of a folder hold it.
    temperature: tyro.conf.Suppress[float] = 0.8


@dataclass(frozen=True)
class RankCommand:
    """Sample answers of a student and of teachers, run their tests, write ranked pairs."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; the same command continues one that was interrupted."""
    tasks: Annotated[str, tyro.conf.arg(help=TASKS)]
    student: Annotated[str, tyro.conf.arg(help=MODEL)]
    teacher: tuple[str, ...]
    """The models to learn from, like --student; one or more."""
    models: Annotated[RankedModelOptions, tyro.conf.arg(name="")]
    sampled: Annotated[Sampled, tyro.conf.arg(name="")] = field(default_factory=Sampled)
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """The PRNG seed of all answers."""
    workers: int | None = None
    """How many programs run at once; by default one per core."""

    def __call__(self) -> None:
        """Writes the pairs and prints how the answers ended."""
        tasks = read_tasks(self.tasks)
        sources = [self.student, *self.teacher]
        repeated = repeated_model(sources)
        if repeated:
            problem = f"--student and --teacher name the same model twice: {repeated}"
            raise UserError(f"{problem}; give other models")
        if not self.teacher:
            raise UserError("--teacher names no model: name at least one to learn from")
        # Before anything is written: a teacher that is missing must not wait for the student.
        answerers: dict[tuple[str, float], Answerer] = {}
        for temperature in self.sampled.temperatures:
            # An answerer has one temperature; the model itself is loaded once for all of them
            # (`_loaded`).
            writing = dataclasses.replace(self.models, temperature=temperature)
            for model in sources:
                answerers[model, temperature] = writing.answerer(model, self.seed)
        # Folders of older versions have these options without a section.
        options = dataclasses.asdict(self)
        options |= options.pop("sampled")
        free = ("workers", "models.mesh", "batch")
        out = opened(self.out, options, free, {"content of --tasks": hash_of(tasks)})

        def answerer(model: str, temperature: float) -> Answerer:
            return answerers[model, temperature]

        ask = evol_prompts.ask_for_answer
        made = make_pairs(sources, answerer, tasks, self.sampled, out, ask, self.workers)
        ranking, failures = made
        counts = {"outcomes": ranking.outcomes, "dropped": ranking.dropped, "failures": failures}
        write_json(out / "counts.json", counts)
        print(f"tasks                {len(tasks):,}")
        print(f"pairs                {len(ranking.pairs):,}")
        print_reasons(ranking.outcomes)
        print_reasons(ranking.dropped)
        print_reasons(failures)
        if ranking.pairs:
            print(f"train on them with --corpus.others NAME {out / PAIRS}, data.examples pairs")
        else:
            print("no pairs: there is no data to train on")
