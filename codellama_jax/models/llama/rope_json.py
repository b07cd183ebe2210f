"""RoPE in transformers' config.json, in the spelling of every version.

Versions up to 4 have `rope_theta` and `rope_scaling`, version 5 `rope_parameters` with both; the
kind is `rope_type`, in old files `type`.
"""

from __future__ import annotations

from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.system.settings import Settings

MAX_THETA = 1e12
MAX_FACTOR = 10_000
MAX_LENGTH = 2**24
ORIGINAL = "original_max_position_embeddings"
# Settings of every kind, and those of each.
COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
KINDS = {
    "default": {"factor", ORIGINAL},
    "linear": {"factor", ORIGINAL},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", ORIGINAL},
    "dynamic": {"factor", ORIGINAL},
}


def rope_fields(config: Settings) -> dict[str, Any]:
    """Returns the fields of LlamaConfig that describe RoPE.

    Raises UserError for settings out of range, unknown, or in contradiction to others.
    """
    # A file may have both spellings, written by different versions: then they must agree.
    scalings = {}
    for name in ("rope_parameters", "rope_scaling"):
        settings = config.inner(name)
        if settings.values:
            scalings[name] = _scaling(config, settings)
    (first, *others) = scalings.values() or [{}]
    for other in others:
        for field in sorted({*first, *other}):
            if first.get(field) != other.get(field):
                values = f"{first.get(field)} and {other.get(field)}"
                fields = "rope_parameters and rope_scaling"
                raise UserError(f"{config.file}: {fields} differ, {values}: they must be equal")
    return {"rope_theta": _theta(config), **first}


def _theta(config: Settings) -> float:
    """Returns the base of RoPE: older files have it at the top, newer ones in rope_parameters."""
    places = (config.inner("rope_parameters"), config.inner("rope_scaling"), config)
    thetas = {}
    for place in places:
        if place.has("rope_theta"):
            thetas[f"{place.prefix}rope_theta"] = place.real("rope_theta", MAX_THETA)
    if len(set(thetas.values())) > 1:
        shown = " and ".join(f"{name} is {theta:g}" for name, theta in thetas.items())
        raise UserError(f"{config.file}: {shown}: they must be equal")
    return next(iter(thetas.values()), 1e4)


def _scaling(config: Settings, scaling: Settings) -> dict[str, Any]:
    """Returns the fields of LlamaConfig for one object of settings, {} without scaling."""
    kind = _kind(scaling)
    # An unknown setting may change the angles, and ignoring it would give a model that is wrong
    # only for long texts.
    unknown = sorted(set(filter(scaling.has, scaling.values)) - COMMON - KINDS[kind])
    if unknown:
        raise scaling.error(unknown[0], f"absent: {kind} RoPE has no such setting")
    if kind == "default":
        if scaling.real("factor", MAX_FACTOR, default=1.0) != 1:
            raise scaling.error("factor", "absent, or beside it rope_type must be 'linear'")
        return {}
    fields: dict[str, Any] = {"rope_scaling": scaling.real("factor", MAX_FACTOR)}
    # A factor of 1 divides nothing, and is the same as no scaling.
    if kind == "linear":
        return fields if fields["rope_scaling"] != 1 else {}
    fields |= {"rope_type": kind, "rope_original_length": _original_length(config, scaling, kind)}
    if kind == "llama3":
        low = scaling.real("low_freq_factor", MAX_FACTOR)
        fields["rope_low_factor"] = low
        fields["rope_high_factor"] = scaling.real("high_freq_factor", MAX_FACTOR)
        if fields["rope_high_factor"] <= low:
            raise scaling.error("high_freq_factor", f"above low_freq_factor, which is {low:g}")
    return fields


def _kind(scaling: Settings) -> str:
    names = [name for name in ("rope_type", "type") if scaling.has(name)]
    for name in names:
        value = scaling.values[name]
        if value != scaling.values[names[0]] or value not in list(KINDS):
            kinds = ", ".join(map(repr, KINDS))
            raise scaling.error(name, f"one of {kinds}, and rope_type and type equal")
    return scaling.values[names[0]] if names else "default"


def _original_length(config: Settings, scaling: Settings, kind: str) -> int:
    """Returns the context before scaling.

    transformers takes max_position_embeddings for dynamic scaling, and for llama3 where no other
    setting has it.
    """
    length = config.integer("max_position_embeddings", MAX_LENGTH, default=2048)
    for place in (scaling, config):
        if place.has(ORIGINAL):
            original = place.integer(ORIGINAL, MAX_LENGTH)
            # transformers ignores the setting here, so that obeying it would compute another model.
            if kind == "dynamic" and original != length:
                needed = f"absent, or {length}, the max_position_embeddings that dynamic RoPE uses"
                raise place.error(ORIGINAL, needed)
            return original
    return length


def rope_settings(c: LlamaConfig) -> dict[str, Any]:
    """Returns the settings of config.json that describe how RoPE is scaled."""
    if c.rope_type == "linear" and c.rope_scaling == 1:
        return {"rope_scaling": None}
    # Both spellings of the kind, for old and new versions of transformers.
    settings = {"type": c.rope_type, "rope_type": c.rope_type, "factor": c.rope_scaling}
    if c.rope_type == "dynamic":
        return {"rope_scaling": settings, "max_position_embeddings": c.rope_original_length}
    if c.rope_type == "llama3":
        settings |= {
            "low_freq_factor": c.rope_low_factor,
            "high_freq_factor": c.rope_high_factor,
            ORIGINAL: c.rope_original_length,
        }
    return {"rope_scaling": settings}
