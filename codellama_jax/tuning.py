"""How a stage changes parameters: the optimizer, and adapters that train in their place.

A part of config.py, whose rules for new fields hold here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from codellama_jax.checked import Checked, FieldError, Pattern, Range

# Metadata of a field that `to_dict` leaves out while it holds its default, as older versions wrote
# no such field.
SPARSE = {"sparse": True}
INT32 = 2**31 - 1  # steps are counted in int32
Count = Annotated[int, Range(0, INT32)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, open_most=True)]
Epsilon = Annotated[float, Range(1e-30, 1)]  # a smaller one is 0 in float32
Rate = Annotated[float, Range(0, 10)]
Target = Annotated[str, Pattern(r"[a-z_]{1,50}", "the name of a weight, such as q")]


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW, linear warm-up, cosine decay to a share of the peak.

    See Code Llama, section 2.2; values that it leaves open are Llama 2's.
    """

    peak_lr: Rate
    warmup_steps: Count = 1000
    final_fraction: Share = 1 / 30
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Epsilon = 1e-5
    weight_decay: Annotated[float, Range(0, 100)] = 0.1
    clip_norm: Annotated[float, Range(1e-30, 1e9)] = 1.0  # of the complete gradient
    # The step at which the cosine ends, after which the rate stays; 0 is the last step.
    decay_steps: Count = field(default=0, metadata=SPARSE)
    # Where the cosine begins: after the warm-up, or at step 0 (CodeGeeX), hidden by the warm-up.
    cosine_from: Literal["warmup", "zero"] = field(default="warmup", metadata=SPARSE)


@dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank adapters (LoRA, Hu et al. 2021): a weight W becomes W + alpha / rank x B A.

    Only A and B train. W is frozen and is no part of the checkpoints.
    """

    # Columns of A; None trains all weights, without adapters.
    rank: Annotated[int, Range(1, 4096)] | None = None
    alpha: Annotated[float, Range(0, 1_000_000, open_least=True)] = 16.0
    # Published weights of every layer that have adapters. The paper's are those of queries and
    # values; Llama has q, k, v, o, gate, up and down, GPT q, k, v, o, up and down.
    targets: tuple[Target, ...] = ("q", "v")
    # How the layers' frozen matrices are stored, as in QLoRA; none keeps the compute dtype.
    quantize_base: Literal["none", "int8", "int4"] = "none"

    @property
    def scale(self) -> float:
        """The factor of B A."""
        assert self.rank is not None
        return self.alpha / self.rank

    def check_relations(self) -> None:
        """Raises FieldError for options of adapters without a rank, and for a lack of targets."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            problem = "names a weight twice" if self.targets else "is empty"
            raise FieldError(("targets",), f" {problem}: name each weight once, such as q v")
        if self.rank is not None:
            return
        for option in dataclasses.fields(self):
            if getattr(self, option.name) != option.default:
                problem = f" is None, and {option.name} is given: give a rank, such as 16, as well"
                raise FieldError(("rank",), problem)

    def check_init(self, init: str) -> None:
        """Raises FieldError for adapters of weights that a stage draws at random."""
        if self.rank is not None and init == "scratch":
            problem = " is scratch: lora adapts trained weights; give run:DIR or previous"
            raise FieldError(("init",), problem)
