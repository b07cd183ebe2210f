"""How tokens are sampled and models quantized. Imports no JAX.

Values are checked here, for the command line and the library alike.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codellama_jax.errors import UserError

if TYPE_CHECKING:
    from codellama_jax.tokenizers.base import Tokenizer

CAPACITY = 131_072  # tokens of a prompt and its continuation; Code Llama is used up to 100,000
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4  # beyond them fp32 logits overflow or all are equal
MAX_SEED = 2**32 - 1  # a PRNG key of JAX holds no more without 64-bit types
MAX_TOP_K = 2**31 - 1
MAX_BEAMS = 256
MAX_DRAFT = 32  # tokens that --speculate drafts at once
MAX_LENGTH_PENALTY = 10.0  # a text of 100,000 tokens to this power is a number of float64
SCHEMES = ("none", "int8", "w8a8", "int4")  # of weights
KV_CACHES = ("none", "int8")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the most likely one or by beam search at temperature 0, else drawn."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Sample from this many of the most likely tokens; 0 from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this share of the probability."""
    max_new_tokens: int = 128
    """Stop after this many tokens."""
    seed: int = 0
    """PRNG seed: the same seed draws the same tokens."""
    beams: int = 1
    """Beam search: how many continuations to extend at once; 1 extends the most likely token."""
    length_penalty: float = 1.0
    """Beam search: divide log-probabilities by the number of tokens to this power."""

    def __post_init__(self) -> None:
        # Zero is not a limit of small temperatures but another rule: the argmax, without a
        # division.
        hot = _is_real(self.temperature) and MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        if not hot and not (_is_real(self.temperature) and self.temperature == 0):
            allowed = f"0, or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
            raise _not_allowed("temperature", self.temperature, allowed)
        if not (_is_real(self.top_p) and 0 < self.top_p <= 1):
            raise _not_allowed("top_p", self.top_p, "a number above 0 and at most 1")
        _check_integer("top_k", self.top_k, 0, MAX_TOP_K)
        _check_integer("max_new_tokens", self.max_new_tokens, 1, CAPACITY - 1)
        _check_integer("seed", self.seed, 0, MAX_SEED)
        check_beams(self.beams, self.length_penalty, self.temperature)


@dataclass(frozen=True)
class Quantization:
    """How the weights of the layers and the KV cache are stored. Formats: `models/quantized.py`."""

    weights: str = "none"
    kv_cache: str = "none"

    def __post_init__(self) -> None:
        if self.weights not in SCHEMES:
            raise _not_allowed("quantize", self.weights, f"one of {', '.join(SCHEMES)}")
        if self.kv_cache not in KV_CACHES:
            raise _not_allowed("kv_cache", self.kv_cache, f"one of {', '.join(KV_CACHES)}")

    def named(self, model: str) -> str:
        """Returns the name of a model with the quantization, by which its samples are known."""
        parts = [model]
        if self.weights != "none":
            parts.append(f"{self.weights} weights")
        if self.kv_cache != "none":
            parts.append(f"{self.kv_cache} cache")
        return ", ".join(parts)


@dataclass(frozen=True)
class QuantizationOptions:
    """The options of the commands that generate."""

    quantize: str = "none"
    """Weights of the layers: none, int8 (as CodeGeeX), w8a8 (int8 activations too) or int4.
    `evaluate` and `serve` take several, separated by commas."""
    kv_cache: str = "none"
    """The cache of keys and values: none for the dtype of the computation, or int8."""
    speculate: int = 0
    """Draft so many tokens where the text repeats itself, and check them in one step: the same
    tokens in less time; 0 for no drafts."""
    draft_model: str = ""
    """A run of a smaller model with the same tokenizer, which drafts the tokens instead."""

    def __post_init__(self) -> None:
        # Building the quantizations checks each of their names.
        self.all()
        _check_integer("speculate", self.speculate, 0, MAX_DRAFT)
        if self.draft_model and not self.speculate:
            raise UserError(
                f"--draft-model {self.draft_model} has no effect without --speculate K, the tokens"
                " of a draft: pass both"
            )

    def all(self) -> list[Quantization]:
        """Returns the quantizations, several of them where `quantize` is separated by commas."""
        schemes = self.quantize.split(",")
        for index, scheme in enumerate(schemes):
            if scheme in schemes[:index]:
                raise _not_allowed("quantize", self.quantize, f"a list that names {scheme} once")
        return [Quantization(scheme, self.kv_cache) for scheme in schemes]

    def single(self) -> Quantization:
        """Returns the quantization. Raises UserError if there are several."""
        if "," in self.quantize:
            allowed = f"one of {', '.join(SCHEMES)}; `evaluate` and `serve` take several"
            raise _not_allowed("quantize", self.quantize, allowed)
        return self.all()[0]


def check_drawing(sampling: Sampling) -> None:
    """Raises UserError for options that only choose among tokens where none is drawn at random.

    The commands call it: a library's caller may pass the same values at any temperature.
    """
    if sampling.temperature != 0:
        return
    # An option without effect is refused instead of ignored: a user who passes --top-p expects
    # samples.
    where = f"with --beams {sampling.beams}" if sampling.beams > 1 else "at --temperature 0"
    fix = "leave it out" if sampling.beams > 1 else "leave it out, or pass --temperature too"
    for field in dataclasses.fields(Sampling):
        value = getattr(sampling, field.name)
        # Equality with the default is the only sign that an option was not passed.
        if field.name in ("top_k", "top_p", "seed") and value != field.default:
            option = f"--{field.name}".replace("_", "-")
            raise UserError(f"{option} {value:g} has no effect {where}, which draws nothing: {fix}")


def check_drafts(options: QuantizationOptions, beams: int) -> None:
    """Raises UserError for drafts that a beam search would not use."""
    # Beam search has its own step on the device, which reads one token per beam.
    if options.speculate and beams > 1:
        raise UserError(
            f"--speculate {options.speculate} has no effect with --beams {beams}: leave it out"
        )


def check_draft_tokenizer(
    draft_model: str, draft: Tokenizer, name: str, tokenizer: Tokenizer
) -> None:
    """Raises UserError for a draft model of another tokenizer than that of the model `name`."""
    # A draft is a list of ids. With another tokenizer the same ids would be other text, and every
    # draft would be refused without an error.
    if draft.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--draft-model {draft_model} has another tokenizer than {name}: pass a run that was"
            " trained with the same one"
        )


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Raises UserError for an empty stop string: every text holds one, so nothing would be left."""
    if "" in stop_strings:
        raise _not_allowed("stop", "", "text of at least one character")


def check_beams(beams: Any, length_penalty: Any, temperature: float) -> None:
    """Raises UserError for options of beam search that are out of range or contradict others."""
    _check_integer("beams", beams, 1, MAX_BEAMS)
    if not (_is_real(length_penalty) and abs(length_penalty) <= MAX_LENGTH_PENALTY):
        allowed = f"a number from {-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
        raise _not_allowed("length_penalty", length_penalty, allowed)
    # One beam is greedy search, which compares no scores of different lengths.
    if beams == 1 and length_penalty != 1:
        raise UserError(
            f"--length-penalty {length_penalty:g} has no effect on one beam: pass --beams too"
        )
    if beams > 1 and temperature != 0:
        raise UserError(
            f"--beams {beams} and --temperature {temperature:g} exclude each other: beam search"
            " draws nothing at random; leave out one of them"
        )


def _is_real(value: Any) -> bool:
    # `True` is an integer to Python, but as a temperature or a count it is a mistake in a config.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and -math.inf < value < math.inf  # isfinite fails for integers of 400 digits


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or not least <= value <= most:
        raise _not_allowed(name, value, f"a whole number from {least} to {most}")


def _not_allowed(name: str, value: Any, allowed: str) -> UserError:
    option = f"--{name}".replace("_", "-")
    return UserError(f"{option} is {repr(value)[:60]}: it must be {allowed}")
