"""Everything that decides a run, as plain frozen dataclasses.

An experiment is a few arms; an arm is a chain of stages; a stage is (where its weights come from, model, data, optimiser,
steps). This module imports neither JAX nor anything of ours but the errors, so that `launch.py plan` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any

from codellama_jax.errors import UserError

CACHE = "~/.cache/codellama_jax"  # prepared documents, tokenizers and compiled programs


@dataclass(frozen=True)
class ModelConfig:
    """A Llama transformer. Letters are those of the tensor names, `x_BTD` and so on."""

    vocab_size: int  # V: rows of the embedding, sentinels included
    d_model: int  # D
    n_layers: int  # L
    n_heads: int  # N: query heads
    n_kv_heads: int  # K: key and value heads; N / K query heads share one
    head_dim: int  # H
    d_ff: int  # F
    norm_eps: float = 1e-5
    rope_theta: float = 1e4
    rope_scaling: float = 1.0  # linear position interpolation: positions are divided by this
    compute_dtype: str = "bfloat16"
    remat: str = "full"  # none | dots | full: what the backward pass computes again
    attention: str = ""  # an implementation of kernels.attention; "" takes the best there is


@dataclass(frozen=True)
class TokenizerConfig:
    """A published SentencePiece model, or one trained on the corpus."""

    path: str = ""  # a tokenizer.model; "" trains one
    pieces: int = 32_000  # without the infilling sentinels


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents come from: a folder of files, or the name of what every machine has.

    `stdlib`: the sources of the running interpreter's standard library. `topics`: its documentation topics.
    `descriptions`: the descriptions of installed packages. A path (local or gs://) is a folder of the user's own files.
    """

    code: str = "stdlib"
    python: str = "stdlib"
    discussions: str = "topics"  # natural language about code
    language: str = "descriptions"  # natural language
    validation_fraction: float = 0.05  # of the files
    max_files: int = 0  # read no more files than this from a source; 0 reads all


@dataclass(frozen=True)
class MixtureConfig:
    """Shares of the training rows (Code Llama, Table 1)."""

    code: float = 0.0
    python: float = 0.0
    discussions: float = 0.0
    language: float = 0.0


@dataclass(frozen=True)
class InfillingConfig:
    """How often a document that fits one context is cut into prefix, suffix and middle (Code Llama, section 2.3)."""

    rate: float = 0.0  # the paper's is 0.9; 0 trains without infilling
    spm: float = 0.5  # of those, the share in suffix-prefix-middle order


@dataclass(frozen=True)
class DataConfig:
    """The stream of packed rows of one stage."""

    seq_len: int  # T: tokens a row
    batch_size: int  # rows a step, over all hosts
    mixture: MixtureConfig
    infilling: InfillingConfig = InfillingConfig()
    block_chars: int = 0  # cut files between definitions into documents of at most this many characters; 0 keeps files whole


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine to a share of the peak (Code Llama, section 2.2; the rest is Llama 2's)."""

    peak_lr: float
    warmup_steps: int = 1000
    final_fraction: float = 1 / 30
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1 and takes what is left."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class Stage:
    """One training run: weights from `init`, then `steps` steps."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    steps: int
    init: str = "previous"  # scratch | previous | run:DIR | run:DIR@STEP | hf:DIR | meta:DIR
    micro_batches: int = 1  # a batch is split into this many, gradients weighted by tokens
    eval_rows: int = 32  # validation rows of seq_len tokens
    eval_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 10


@dataclass(frozen=True)
class ProbesConfig:
    """What is asked of the model after its stages."""

    perplexity_lengths: tuple[int, ...] = ()
    perplexity_rows: int = 8  # documents of the longest length; shorter ones read the same documents' beginnings
    infilling_examples: int = 0
    bigram: bool = False  # fit an interpolated bigram model to the training tokens and print it beside
    completions: tuple[str, ...] = ()
    infills: int = 0  # sample infills shown in the report
    max_new_tokens: int = 64
    last_stage_only: bool = False  # ask the last stage of each arm and no other
    infilling_kinds: tuple[str, ...] = ()  # single-line, multi-line, random-span: what is cut out, each filled in every format
    kind_examples: int = 128  # of each kind
    key_lengths: tuple[int, ...] = ()  # tokens of prompts that hide a key
    key_positions: tuple[float, ...] = (0.0, 0.2, 0.4)  # where it stands, as a share of the prompt
    key_examples: int = 64  # of each length and position
    temperatures: tuple[float, ...] = ()  # at which the ends of held-out lines are sampled
    line_ends: int = 64
    line_end_samples: int = 200  # of each line


@dataclass(frozen=True)
class Experiment:
    """What an experiment file returns for a scale."""

    name: str
    scale: str
    arms: dict[str, dict[str, Stage]]  # arm -> stage name -> stage, in order
    tokenizer: TokenizerConfig = TokenizerConfig()
    corpus: CorpusConfig = CorpusConfig()
    mesh: MeshConfig = MeshConfig()
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    seed: int = 0
    seeds: int = 1  # every arm is trained with as many


def seeded(arm: str, number: int) -> str:
    """Returns the name of an arm's folder for one of its seeds, counted from 0."""
    return f"{arm}@{number}" if number else arm


def to_dict(config: Any) -> dict:
    """Returns nested plain dicts, lists and numbers: what is written beside a run."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: Any) -> Any:
    """Builds `cls` back from what `to_dict` returned. Raises UserError naming a field that `cls` does not have."""
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if origin is tuple:
        return tuple(from_dict(args[0], v) for v in values)
    if origin is dict:
        return {k: from_dict(args[1], v) for k, v in values.items()}
    if not dataclasses.is_dataclass(cls):
        return cls(values)
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{cls.__name__} has no field {', '.join(unknown)}: written by another version of this code")
    return cls(**{k: from_dict(hints[k], v) for k, v in values.items()})


def leaves(values: dict, prefix: str = "") -> dict[str, Any]:
    """Returns what is not a dict of a `to_dict` result, by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lists the leaves in which two `to_dict` results differ, as `dotted.name: old -> new`."""
    rows = []
    for key in sorted(set(old) | set(new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differences(a, b, name + ".")
        elif a != b:
            rows.append(f"{name}: {a} -> {b}")
    return rows
