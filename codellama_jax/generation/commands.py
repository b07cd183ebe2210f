"""`complete` and `infill` of the command line.

Everything that needs no model is checked before JAX starts, and nothing is printed on standard
output before all checks have passed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from codellama_jax.errors import UserError
from codellama_jax.generation.middle import Order, better_order, without_infilling
from codellama_jax.generation.options import Generating, Trained, ends_at_once, note
from codellama_jax.generation.settings import check_stop_strings
from codellama_jax.generation.source import Source, decoded, read_source

if TYPE_CHECKING:
    from codellama_jax.models.trained import TrainedModel


@dataclass(frozen=True)
class Asking(Generating):
    """Options of a command that reads one prompt."""

    text: Annotated[str, tyro.conf.Positional]
    _: KW_ONLY
    stop: tuple[str, ...] = ()
    """End before any of these strings."""
    healing: bool = False
    """Let the first token also end a token in which the prompt stops, as `enu` for `enumerate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stop_strings(self.stop)

    def report(self, model: TrainedModel) -> None:
        """Reports how many tokens of drafts the model accepted."""
        if self.quantization.speculate and model.drafter:
            note(model.drafter.report())

    def load_for(self, ids: list[int]) -> TrainedModel:
        """Starts JAX and loads the model, to read a prompt of `ids`."""
        model = self.load()
        note(f"reading the prompt, tokens: {len(ids):,} (a new length compiles first)")
        return model


@dataclass(frozen=True)
class Complete(Asking):
    """Continue a prompt."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT")]
    """The prompt; `-` reads it from standard input."""

    def __call__(self) -> None:
        """Prints the prompt and its continuation."""
        if self.text == "-":
            source = read_source("-")
        else:
            # Back to the bytes of the command line: Python smuggles bytes that are not UTF-8
            # through a str as lone surrogates, and they deserve the same message as those in a
            # file.
            source = decoded(os.fsencode(self.text), "the prompt")

        # The order of the checks is their cost: text, run folder, length, then JAX and the weights.
        prompt, trained = source.for_model(source.text), self.find()
        ids = trained.tokenizer.prompt(prompt)
        self.check_length(trained, ids, source.name)
        model = self.load_for(ids)
        from codellama_jax.generation.text import complete

        # The prompt is printed as it was in the file, not as the model reads it.
        output = Output(source, source.text)
        with ends_at_once():
            complete(model, [prompt], self.sampling, self.stop, output.write, healing=self.healing)
        output.finish("\n")
        self.report(model)


@dataclass(frozen=True)
class Infill(Asking):
    """Fill in <FILL_ME> in a file and print the complete file."""

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file, local or gs://; `-` reads standard input."""
    spm: bool = False
    """Suffix-prefix-middle order. Without --spm and --psm the run's own probes decide."""
    psm: bool = False
    """Prefix-suffix-middle order, the paper's default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spm and self.psm:
            raise UserError("--spm and --psm exclude each other: pass one of them")
        if self.psm and self.healing:
            raise UserError("--healing works in SPM order only: pass --spm instead of --psm")

    def __call__(self) -> None:
        """Prints the file, its mark replaced by what the model generates."""
        source = read_source(self.text)
        before, after = source.split()
        prefix, suffix, trained = source.for_model(before), source.for_model(after), self.find()
        from codellama_jax.data.infilling import prompt_ids

        tokenizer = trained.tokenizer
        if trained.stage.model.vocab_size < tokenizer.vocab_size:
            raise UserError(without_infilling(self.run))
        order = self.order(trained)
        note(f"order {'SPM' if order.spm else 'PSM'}: {order.reason}")
        ids = prompt_ids(tokenizer, prefix, suffix, order.spm)
        self.check_length(trained, ids, source.name)
        model = self.load_for(ids)
        from codellama_jax.generation.infill import infill_one

        output = Output(source, before)
        # Redirected to a file or a program, the output is complete or empty.
        stream = output.write if sys.stdout.isatty() else None
        options = (self.sampling, order.spm, self.stop, stream, self.healing)
        with ends_at_once():
            middle = infill_one(model, prefix, suffix, *options)
        if stream is None:
            output.write(middle.text)
        output.finish(after)
        self.report(model)
        if not middle.is_ended:
            tokens = self.sampling.max_new_tokens
            kept = f"{len(middle.text):,} characters are kept"
            note(f"warning: no end of the middle within {tokens:,} tokens: {kept}")
        elif not middle.text.strip():
            other = "--psm" if order.spm else "--spm"
            note(f"note: the model fills in nothing here; {other} or --temperature 0.8 may differ")

    def order(self, trained: Trained) -> Order:
        """Returns the order to fill in, and why."""
        if self.spm or self.psm:
            return Order(self.spm, "as given")
        # PSM ends with a sentinel, where no text token could be unfinished.
        if self.healing:
            return Order(True, "--healing works in no other")
        return better_order(trained.folder.read_probes())


class Output:
    """Writes a text to standard output byte for byte, the model's part in green on a terminal."""

    def __init__(self, source: Source, before: str):
        self.source, self.before = source, before
        self.on, self.off = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
        self.has_begun = False

    def write(self, text: str) -> None:
        """Writes a piece of the model's text, after everything before it."""
        self._begin()
        if text:
            self._put(f"{self.on}{self.source.from_model(text)}{self.off}")

    def finish(self, after: str) -> None:
        """Writes what follows the model's text."""
        self._begin()
        self._put(after)

    def _begin(self) -> None:
        # The text before the mark waits for the model's first piece, so that a command which fails
        # prints nothing. The byte order mark, which the model does not read, is restored.
        if not self.has_begun:
            self.has_begun = True
            self._put(("\ufeff" if self.source.has_mark else "") + self.before)

    def _put(self, text: str) -> None:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
