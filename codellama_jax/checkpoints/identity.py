"""The fields of a config that decide the result of a stage, and their hash, its identity.

A config can grow: a field added with a default changes no identity and refuses no resume, as long
as it holds that default. A field that never changes the trained parameters is declared with
`metadata=config.FREE`. Starts no JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import Any

from codellama_jax.checked import FieldError, default_of, from_dict
from codellama_jax.config import PREPARED, Stage, differences, to_dict
from codellama_jax.data_stage import DataStage

# Fields of the first versions, whose identities hash them whatever they hold. It never grows: any
# other field is hashed only where it differs from its default.
ALWAYS_HASHED = frozenset(
    (
        "model.vocab_size",
        "model.d_model",
        "model.n_layers",
        "model.n_heads",
        "model.n_kv_heads",
        "model.head_dim",
        "model.d_ff",
        "model.norm_eps",
        "model.rope_theta",
        "model.rope_scaling",
        "model.compute_dtype",
        "data.seq_len",
        "data.batch_size",
        "data.mixture.code",
        "data.mixture.python",
        "data.mixture.discussions",
        "data.mixture.language",
        "data.infilling.rate",
        "data.infilling.spm",
        "data.block_chars",
        "optimizer.peak_lr",
        "optimizer.warmup_steps",
        "optimizer.final_fraction",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "steps",
        "init",
        "eval_rows",
        "eval_every",
    )
)
NO_DEFAULT = object()  # differs from every value


def identity(stage: Stage, before: str, seed: int, shared: Any = None) -> str:
    """Returns a hash of everything that decides the trained parameters of a stage.

    Args:
      stage: the config.
      before: the identity of the stage before it, which counts where this one starts from that.
      seed: the PRNG seed of its batches and first parameters.
      shared: the documents and the tokenizer, ready for JSON.
    """
    # The leading dots are hashed too: without them every identity would change.
    values = {f".{name}": value for name, value in deciding(stage, to_dict(stage)).items()}
    values[".init"] = before if stage.init == "previous" else stage.init
    return _hash([values, seed, shared])


def data_identity(stage: DataStage, seed: int, shared: Any) -> str:
    """Returns a hash of everything that decides the data that a stage writes.

    Args:
      stage: the config.
      seed: the PRNG seed of the answers.
      shared: the models, the tokenizer and the files that the stage reads, ready for JSON.
    """
    return _hash([deciding(stage, to_dict(stage)), seed, shared])


def _hash(values: list[Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def deciding(
    config: Any, values: dict, default: Any = NO_DEFAULT, prefix: str = ""
) -> dict[str, Any]:
    """Returns the hashed leaves of a config by dotted name.

    Args:
      config: a dataclass.
      values: `to_dict(config)`; a key in it that is no field, such as a tag, is always hashed.
      default: the default of the field that holds `config`, a dataclass; NO_DEFAULT without one.
      prefix: of the dotted names.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        # A value without a field is the tag of a model family, which decides like a field.
        dotted = f"{prefix}{name}"
        if name not in fields:
            leaves[dotted] = value
            continue
        if is_free(fields[name]):
            continue
        # A nested default, such as InfillingConfig() in DataConfig, is that of the fields in it.
        usual = _default(fields[name]) if default is NO_DEFAULT else getattr(default, name)
        part = getattr(config, name)
        if not dataclasses.is_dataclass(part):
            # A default changes no identity, so that a config can grow.
            if dotted in ALWAYS_HASHED or value != _plain(usual):
                leaves[dotted] = value
        elif usual is NO_DEFAULT or type(part) is type(usual):
            leaves |= deciding(part, value, usual, f"{dotted}.")
        else:  # None or another class by default: the class itself is a choice
            leaves[dotted] = value
    return leaves


def is_free(field: dataclasses.Field) -> bool:
    """Returns whether a field never changes the trained parameters."""
    return bool(field.metadata.get("free"))


def without_free(config: Any, values: dict) -> dict:
    """Returns a `to_dict` result of the class of `config` without its free fields.

    Dicts, such as the arms of an experiment, are followed where `config` has the same keys.
    """
    is_group = dataclasses.is_dataclass(config)
    free: set[str] = set()
    if is_group:
        free = {field.name for field in dataclasses.fields(config) if is_free(field)}
    kept = {}
    for name, value in values.items():
        if name in free:
            continue
        part = getattr(config, name, None) if is_group else config.get(name)
        follow = isinstance(value, dict) and (dataclasses.is_dataclass(part) or type(part) is dict)
        kept[name] = without_free(part, value) if follow else value
    return kept


def changes(old: dict, config: Any, prefix: str = "") -> list[str]:
    """Lists the deciding fields in which a saved config differs from this one: `name: old -> new`.

    Fields that the saved config lacks, being older than they are, hold their defaults there.
    """
    # Without the free fields first: an old version may have given one a value that is refused now.
    saved = without_free(config, old)
    # A config that this version cannot build is compared as it was written.
    with contextlib.suppress(FieldError):
        saved = without_free(config, to_dict(from_dict(type(config), saved)))
    current = without_free(config, to_dict(config))
    return differences(_without_places(saved), _without_places(current), prefix)


def _without_places(value: Any) -> Any:
    """Returns a value of `to_dict` without the folders of prepared corpora.

    A corpus may be moved: its fingerprint decides, which the run folder has.
    """
    if isinstance(value, dict):
        return {name: _without_places(part) for name, part in value.items()}
    return PREPARED if isinstance(value, str) and value.startswith(PREPARED) else value


def _default(field: dataclasses.Field) -> Any:
    default = default_of(field)
    return NO_DEFAULT if default is dataclasses.MISSING else default


def _plain(value: Any) -> Any:
    """Returns a default in the form in which `to_dict` writes it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    # As after a file was read: tuples become lists.
    return value if value is NO_DEFAULT else json.loads(json.dumps(value))
