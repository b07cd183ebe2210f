"""`import`, `export` and `check` of `python -m codellama_jax`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Import:
    """Bring published weights in: a run that complete, infill, export and init=run: take."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A folder of safetensors as transformers writes it, or of consolidated.NN.pth as Meta publishes it."""
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder to make, local or gs://."""
    tokenizer: str = ""
    """The tokenizer.model; that of DIR, or beside it, unless given."""

    def __call__(self) -> None:
        from codellama_jax.tokenizer import load as load_tokenizer
        from codellama_jax.training.checkpoint import folder_at
        from codellama_jax.weights import check, load, store
        from codellama_jax.weights.layout import trimmed

        folder = folder_at(self.source)
        kind, source = load.open_published(folder)
        tokenizer = load_tokenizer(folder_at(self.tokenizer)) if self.tokenizer else check.needed_tokenizer(folder)
        store.write_run(trimmed(source, tokenizer), tokenizer, kind, folder_at(self.run))


@dataclass(frozen=True)
class Export:
    """Write a trained model for transformers, vLLM and llama.cpp, or for Meta's own code."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run or of one of its stages, local or gs://."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    to: Literal["hf", "meta"]
    """The layout: safetensors as transformers has them, or Meta's consolidated.NN.pth."""
    arm: str = ""
    """An arm of the run; its first one unless given."""
    stage: str = ""
    """A stage of the arm; the last that is done unless given."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Rounded to this; the checkpoint's own unless given: float32 after training."""
    ranks: int = 1
    """Meta's model-parallel width: one file for each."""

    def __call__(self) -> None:
        from codellama_jax.training.checkpoint import folder_at, run_tokenizer
        from codellama_jax.weights import huggingface, meta, store
        from codellama_jax.weights.layout import cast

        run = folder_at(self.run)
        source = store.open_run(run, self.arm, self.stage)
        tokenizer, target = run_tokenizer(folder_at(source.name)), folder_at(self.target)
        source = cast(source, self.dtype) if self.dtype else source
        if self.to == "hf":
            huggingface.write(source, tokenizer, target)
        else:
            meta.write(source, tokenizer, target, self.ranks)


@dataclass(frozen=True)
class Check:
    """Compare two models' tokens and logits on a text."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR_OR_RUN")]
    """A run, or a folder of transformers' or Meta's weights."""
    against: str = ""
    """Another one; unless given, transformers' own reading of the first."""
    text: str = ""
    """A file of text; a source of this project unless given."""
    tokens: int = 512
    """How many of its tokens are read."""

    def __call__(self) -> None:
        from codellama_jax import config
        from codellama_jax.training.checkpoint import folder_at
        from codellama_jax.weights import check

        text = folder_at(self.text or config.__file__).read_text()
        for what, figure in check.compare(folder_at(self.folder), folder_at(self.against) if self.against else None, text, self.tokens):
            print(f"{what:26}{figure}")


COMMANDS = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)
