"""The options of `compile` and `kernels`, the verbs that use the TPU compiler without a TPU."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from codellama_jax.checked import Checked, FieldError, Range
from codellama_jax.config import CACHE, INT32, Experiment
from codellama_jax.errors import UserError
from codellama_jax.runs.commands import PlanOptions
from kernels.static.chips import TOPOLOGIES

if TYPE_CHECKING:
    from codellama_jax.report.findings import FindingOf

TARGET = (
    "Chip and topology: v4:4x4x4, v5e:16x16, v5p:4x8x8, v6e:16x16, tpu7x:4x4x4; one chip is v5e:1x1"
    " or v5p:1x1x1."
)
INFERENCE = ("prefill", "decode")  # programs beside the train steps of the stages
SEQ_BLOCK = 1024  # tokens; the largest block of any kernel divides it


@dataclass(frozen=True)
class CompileOptions(PlanOptions):
    """The options of `compile`."""

    stage: str = "code"
    """A stage of the experiment, or prefill or decode of its last model."""
    target: Annotated[str, tyro.conf.arg(help=TARGET)] = "v5p:4x8x8"
    slices: Annotated[int, Range(1, 256)] = 1
    """Pods of that topology, joined by the data axis."""
    search: bool = False
    """Try meshes, rematerialisation and micro-batches of a train step; print the best that fits."""
    batch: Annotated[int, Range(1, 2**20)] = 1
    """Sequences of prefill or decode."""
    context: Annotated[int, Range(1, INT32)] = 100_000
    """Tokens of a prompt to prefill, or in the cache to decode after."""
    cache: str = CACHE
    """Where figures of the project's own kernels are kept."""

    def check_relations(self) -> None:
        """Raises FieldError for a search of settings that only a train step has."""
        if self.search and self.stage in INFERENCE:
            problem = f" is given with --stage {self.stage}, but only train steps are searched"
            raise FieldError(("search",), f"{problem}: leave it out, or name a stage to train")

    def start(self, experiment: Experiment, claim: str, finding: FindingOf | None) -> None:
        """Compiles a stage of an experiment and prints the compiler's estimates."""
        from codellama_jax.compile.target import prepare_environment

        prepare_environment(self.target)  # before the import of JAX, which reads it
        from codellama_jax.compile.command import compile_experiment

        compile_experiment(experiment, self)


@dataclass(frozen=True)
class Kernels(Checked):
    """The options of `kernels`."""

    kernel: Annotated[
        Literal["cross_entropy", "decode_attention", "flash_attention"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="KERNEL"),
    ]
    """cross_entropy, decode_attention or flash_attention."""
    chip: str = "v5p"
    """One chip or several, separated by commas: v4, v5e, v5p, v6e, tpu7x."""
    seq: Annotated[int, Range(1024, INT32)] = 4096
    """Tokens of a sequence, a multiple of 1,024. For decode_attention the slots of a cache."""
    head_dim: Annotated[int, Range(1, 4096)] = 128
    """Size of an attention head."""
    cache: Literal["bfloat16", "int8"] = "bfloat16"
    """Dtype of the cache that decode_attention reads."""
    group: Annotated[int, Range(1, 4096)] = 8
    """Query heads per key head of decode_attention."""
    compare: str = ""
    """A kernel to compile beside it, such as splash, JAX's own flash attention."""

    def __call__(self) -> None:
        """Prints one line per pass of the kernel and chip. Raises UserError for a wrong value."""
        chips = self.chip.split(",")
        for chip in chips:
            if chip not in TOPOLOGIES:
                known = ", ".join(TOPOLOGIES)
                raise UserError(f"--chip is {chip!r}: it must be one or several of {known}")
        is_decode = self.kernel == "decode_attention"
        for name in () if is_decode else ("cache", "group"):
            if getattr(self, name) != getattr(type(self), name):
                problem = f"--{name} is given, but {self.kernel} reads no cache"
                raise UserError(f"{problem}: leave it out, or name decode_attention")
        # The largest block of any kernel then divides the length, and no pass ends with a part of
        # one. Attention in decoding counts such a part.
        if self.seq % SEQ_BLOCK and not is_decode:
            raise UserError(f"--seq is {self.seq}: it must be a multiple of {SEQ_BLOCK:,}")
        if importlib.util.find_spec("libtpu") is None:
            fix = "pip install -e '.[tpu]' in the project's folder"
            raise UserError(f"the TPU compiler is not installed: {fix}")
        # Imported last: its module imports JAX after it has set libtpu's environment.
        from kernels.static.command import print_schedules

        print_schedules(self.kernel, chips, self, self.compare)
