"""The options of the commands that generate text, and how they find and load the model.

Everything that needs no model is checked before JAX starts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from codellama_jax.command_line import INTERRUPTED
from codellama_jax.config import CACHE, MeshConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import (
    CAPACITY,
    QuantizationOptions,
    Sampling,
    check_draft_tokenizer,
    check_drafts,
    check_drawing,
)
from codellama_jax.system.files import user_path

if TYPE_CHECKING:
    from codellama_jax.checkpoints.folder import StageFolder
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A trained stage, before its parameters are loaded."""

    folder: StageFolder
    stage: Stage
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Loading:
    """Options of every command that loads a trained model."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run or of one of its stages, local or gs://."""
    _: KW_ONLY
    arm: str = ""
    """An arm of the run; its first one unless given."""
    stage: str = ""
    """A stage of the arm; the last that is done unless given."""
    quantization: Annotated[QuantizationOptions, tyro.conf.arg(name="")] = field(
        default_factory=QuantizationOptions
    )
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The devices of this host along each axis; -1 takes the remaining ones."""

    def __post_init__(self) -> None:
        self.check_quantization()

    def check_quantization(self) -> None:
        """Raises UserError for several quantizations."""
        self.quantization.single()

    def find(self) -> Trained:
        """Finds the stage and its tokenizer. Raises UserError without starting JAX."""
        # Checked first: a closed standard output would otherwise be noticed only once text is
        # printed, after loading the model.
        if sys.stdout is None:
            raise UserError("standard output is closed: redirect it to a file or a terminal")
        # Imports inside the methods keep the start of a command fast, and free of JAX until `load`.
        from codellama_jax.checkpoints.folder import RunFolder, find_trained

        folder, stage = RunFolder(user_path(self.run)).find_stage(self.arm, self.stage)
        trained = folder.trained()
        if not trained.checkpoints.exists():
            raise UserError(
                f"no checkpoint in {trained}: give the folder of a run that has trained"
            )
        tokenizer = trained.load_tokenizer()
        # The draft model is looked up now for its errors; `load_all` loads it.
        draft_model = self.quantization.draft_model
        if draft_model:
            draft, _ = find_trained(user_path(draft_model))
            check_draft_tokenizer(draft_model, draft.load_tokenizer(), self.run, tokenizer)
        for limit in tokenizer.limits:
            note(f"note on the tokenizer: {limit}")
        return Trained(folder, stage, tokenizer)

    def load(self) -> TrainedModel:
        """Starts JAX and loads the model."""
        (model,) = self.load_all()
        return model

    def load_all(self) -> list[TrainedModel]:
        """Starts JAX and loads the model with each quantization."""
        note(f"starting JAX and loading {self.run}")
        from codellama_jax.checkpoints.loading import keep_compiled, load_run
        from codellama_jax.generation.draft_model import with_drafts
        from codellama_jax.generation.quantize import quantized
        from codellama_jax.sharding.mesh import make_mesh

        # Compiled programs are kept on disk, which saves most of a second start's waiting.
        keep_compiled(CACHE)
        mesh = make_mesh(self.mesh)
        loaded = load_run(self.run, self.arm, self.stage, mesh)
        # The drafter is attached before quantizing, so that all quantizations share one draft
        # model.
        loaded = with_drafts(loaded, self.quantization, functools.partial(load_run, mesh=mesh))
        return [quantized(loaded, quantization) for quantization in self.quantization.all()]


@dataclass(frozen=True)
class Generating(Loading):
    """Options of every command that generates text."""

    _: KW_ONLY
    sampling: Annotated[Sampling, tyro.conf.arg(name="")]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drawing(self.sampling)
        check_drafts(self.quantization, self.sampling.beams)

    def check_length(self, trained: Trained, ids: list[int], name: str) -> None:
        """Raises UserError for a prompt that no model reads; warns where it is longer than the
        sequences that the model was trained on."""
        most, new = CAPACITY - self.sampling.max_new_tokens, self.sampling.max_new_tokens
        if len(ids) > most:
            allowed = f"beside --max-new-tokens {new} a prompt holds at most {most:,}"
            raise UserError(f"{name} has {len(ids):,} tokens: {allowed}")
        # First the model's hard limit (learned positions), then a warning: RoPE reads longer texts
        # than the training had, but nothing ensures that it does so well.
        trained.stage.model.check_length(f"{name} with {new:,} new tokens", len(ids) + new)
        length = trained.stage.data.seq_len
        if len(ids) + new > length:
            trained_on = f"the model was trained on sequences of {length:,}"
            note(f"warning: {name} and {new:,} new tokens are {len(ids) + new:,}; {trained_on}")


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Ends the process at Ctrl-C. The interpreter would wait for the computation that is running,
    which takes minutes for a long prompt."""
    try:
        yield
    except KeyboardInterrupt:
        note("\nstopped")
        # Skips the clean-up of Python and JAX, which would block on the running computation.
        os._exit(INTERRUPTED)


def note(text: str) -> None:
    """Prints a line on stderr, where it does not mix with the text that is generated."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)
