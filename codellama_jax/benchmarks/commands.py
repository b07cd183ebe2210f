"""`evaluate`: measures a benchmark. A mistake that needs no model is reported before JAX starts."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from codellama_jax.benchmarks.options import all_options, options_of
from codellama_jax.benchmarks.settings import Checking, Ranking, Settings
from codellama_jax.benchmarks.suites import suite_of
from codellama_jax.config import CACHE, MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import (
    Quantization,
    QuantizationOptions,
    check_draft_tokenizer,
    check_drafts,
)
from codellama_jax.system.files import is_bucket, user_path

if TYPE_CHECKING:
    from codellama_jax.benchmarks.found_model import FoundModel
    from codellama_jax.models.trained import TrainedModel

SuiteOptions: Any = all_options()

SAMPLES = (
    "Score these samples instead of generating any: a file of HumanEval's harness, EvalPlus,"
    " BigCode or CodeGeeX, plain or gzipped."
)
ACROSS_HOSTS = (
    "Shard one model over the devices of all hosts. Unless given, each host loads the full model"
    " and answers its share of the tasks."
)

MESH = (
    "The devices of a model along each axis; -1 takes the remaining ones. The KV cache is sharded"
    " by heads over `tensor`, by sequences over `data`."
)


@dataclass(frozen=True)
class Evaluate:
    """The options of `evaluate`."""

    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")]
    """A benchmark's name, such as humaneval; a wrong name lists them all."""
    out: str
    """The folder for samples.jsonl, results.jsonl and results.json; the same command continues."""
    options: Annotated[SuiteOptions, tyro.conf.arg(name="")]
    settings: Annotated[Settings, tyro.conf.arg(name="")]
    checking: Annotated[Checking, tyro.conf.arg(name="")]
    ranking: Annotated[Ranking, tyro.conf.arg(name="")] = field(default_factory=Ranking)
    run: str = ""
    """The folder of a run or of one of its stages, local or gs://; not needed to score."""
    arm: str = ""
    """An arm of the run; its first one unless given."""
    stage: str = ""
    """A stage of the arm; the last that is done unless given."""
    samples_file: Annotated[str, tyro.conf.arg(help=SAMPLES)] = ""
    reference: bool = False
    """Score the canonical solutions instead of generating any."""
    across_hosts: Annotated[bool, tyro.conf.arg(help=ACROSS_HOSTS)] = False
    quantization: Annotated[QuantizationOptions, tyro.conf.arg(name="")] = field(
        default_factory=QuantizationOptions
    )
    mesh: Annotated[MeshConfig, tyro.conf.arg(help=MESH)] = field(default_factory=MeshConfig)

    def __call__(self) -> None:
        from codellama_jax.benchmarks.evaluate import evaluate
        from codellama_jax.sharding.hosts import start_distributed

        # First, because a wrong name of the benchmark makes every other message misleading.
        options = options_of(self.benchmark, self.options)
        if not (self.run or self.samples_file or self.reference):
            raise UserError(
                "nothing to evaluate: pass --run RUN, --samples-file FILE or --reference"
            )
        if self.samples_file and self.reference:
            raise UserError("--samples-file and --reference exclude each other: pass one of them")
        if self.run and self.reference:
            raise UserError(
                "--run and --reference exclude each other: canonical solutions need no model"
            )
        self._check_run_options()
        docstring_run = self.ranking.docstring_run
        runs = {
            "--run": self.run,
            "--docstring-run": docstring_run,
            "--draft-model": self.quantization.draft_model,
        }
        # Before JAX starts: a misspelt folder would otherwise be noticed after minutes.
        for option, run in runs.items():
            if run and not is_bucket(run) and not user_path(run).exists():
                raise UserError(f"there is no run {run}: pass the folder of a run with {option}")
        quantizations = self.quantization.all()
        if quantizations != [Quantization()] and (self.samples_file or self.reference):
            raise UserError(
                "--quantize and --kv-cache need a model that generates: leave them out to score"
                " samples"
            )
        # The KV cache exists only where the model generates, not where it scores given texts.
        has_cache = options.writes and not suite_of(self.benchmark).measure
        if self.quantization.kv_cache != "none" and not has_cache:
            why = f"on {self.benchmark}, which scores given texts and keeps no cache"
            given = f"--kv-cache {self.quantization.kv_cache}"
            raise UserError(f"{given} has no effect {why}: leave it out")
        drafted = self.quantization.speculate
        if drafted and not (self.run and has_cache):
            needed = "without a --run that generates"
            raise UserError(f"--speculate {drafted} has no effect {needed}: leave it out")
        if len(quantizations) > 1 and self.ranking != Ranking():
            raise UserError("--rank takes one scheme of --quantize: pass one, or leave out --rank")
        check_drafts(self.quantization, self.settings.beams)
        start_distributed()
        if len(quantizations) > 1:
            from codellama_jax.benchmarks.quantization import compare

            # Each scheme is a complete evaluation of the same request, in a folder inside of `out`.
            request = self.benchmark, options, self.settings, self.checking
            compare(*request, self.load, quantizations, self.out, self.find)
            return
        evaluate(
            self.benchmark,
            # A function instead of a model, so that everything else is checked before it is loaded.
            functools.partial(self.load_as, quantizations[0]) if self.run else None,
            options,
            self.settings,
            self.checking,
            self.out,
            self.samples_file,
            self.reference,
            self.ranking,
            self.load_docstring_model if docstring_run else None,
            functools.partial(self.find, quantizations[0]) if self.run else None,
        )

    def _check_run_options(self) -> None:
        """Raises UserError for options of a run that is not given, or not used."""
        given = {
            "--arm": self.arm != "",
            "--stage": self.stage != "",
            "--across-hosts": self.across_hosts,
            "--mesh": self.mesh != MeshConfig(),
        }
        for option, is_given in given.items():
            if is_given and not self.run:
                raise UserError(f"{option} has no effect without --run: leave it out")
        if self.run and self.samples_file and not suite_of(self.benchmark).texts:
            raise UserError(
                f"--run has no effect with --samples-file: no tokenizer is needed to score"
                f" {self.benchmark}; leave out one of them"
            )

    def find(self, quantization: Quantization) -> FoundModel:
        """Returns what is known of the model before it is loaded."""
        from codellama_jax.benchmarks.found_model import find_model

        return find_model(self.run, self.arm, self.stage, quantization)

    def load_as(self, quantization: Quantization) -> TrainedModel:
        """Loads the model, quantized."""
        from codellama_jax.generation.quantize import quantized

        return quantized(self.load(), quantization)

    def load(self) -> TrainedModel:
        """Loads the model onto its devices: those of this host, or of all."""
        self._check_further_runs()
        from codellama_jax.generation.draft_model import with_drafts

        model = self._load(self.run, self.arm, self.stage)
        return with_drafts(model, self.quantization, self._load)

    def _check_further_runs(self) -> None:
        """Raises UserError for runs that would be refused once the model is loaded, or has drawn
        its samples."""
        from codellama_jax.checkpoints.folder import find_trained

        draft_model = self.quantization.draft_model
        if draft_model:
            model, _ = find_trained(user_path(self.run), self.arm, self.stage)
            draft, _ = find_trained(user_path(draft_model))
            check_draft_tokenizer(
                draft_model, draft.load_tokenizer(), self.run, model.load_tokenizer()
            )
        if self.ranking.docstring_run:
            find_trained(user_path(self.ranking.docstring_run))

    def load_docstring_model(self) -> TrainedModel:
        """Loads the model of docstrings as `load` does, beside the other one."""
        return self._load(self.ranking.docstring_run)

    def _load(self, run: str, arm: str = "", stage: str = "") -> TrainedModel:
        print(f"starting JAX and loading {run}", file=sys.stderr, flush=True)
        import jax

        from codellama_jax.checkpoints.loading import keep_compiled, load_run
        from codellama_jax.sharding.mesh import make_mesh

        keep_compiled(CACHE)
        # By default every host has a full model and takes a share of the samples, which needs no
        # communication between hosts while tokens are generated.
        devices = jax.devices() if self.across_hosts else jax.local_devices()
        return load_run(run, arm, stage, make_mesh(self.mesh, devices))
