"""Writes the adapters of a stage as a folder that PEFT loads on the exported base.

PEFT (github.com/huggingface/peft) has one adapter per module of transformers: `lora_A` is (rank,
inputs) and `lora_B` (outputs, rank). A module that holds several published weights, such as the
c_attn of GPT-2, gets the adapters of all of them: their A one below the other, and their B in the
rows of each weight, so that the rank of the module is the sum of their ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epath

from codellama_jax.checkpoints.folder import find_trained
from codellama_jax.checkpoints.loading import load_adapters
from codellama_jax.config import LoraConfig, MeshConfig, ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.family import family_of
from codellama_jax.models.lora import Slot, pairs_of, slots
from codellama_jax.models.parameters import is_stacked
from codellama_jax.models.published import Packing
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.system.console import warn
from codellama_jax.system.files import is_bucket, write_json
from codellama_jax.weights.folders import complete_folder
from codellama_jax.weights.huggingface import model_type, save_tensors
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import shapes
from codellama_jax.weights.packing import pack

PREFIX = "base_model.model."  # PEFT's, before the names of transformers


@dataclass(frozen=True)
class Module:
    """A module of transformers with adapters.

    Args:
      name: its dotted name, `{}` in place of the layer.
      packing: how its weight holds published ones.
      slots: those of the adapted weights in it, in the order of `packing.parts`.
    """

    name: str
    packing: Packing
    slots: list[Slot]


def write_adapter(
    run: epath.Path, arm: str, stage: str, folder: epath.Path, integrity: bool = False
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      run, arm, stage: the stage, as in `find_trained`.
      folder: a local folder that does not exist yet.
      integrity: whether to write checksums of the files as well.

    Raises UserError for a stage without adapters, and if the folder cannot be written.
    """
    trained, config = find_trained(run, arm, stage)
    if config.lora.rank is None:
        fix = "leave --adapter out, or train one with --STAGE.lora.rank"
        raise UserError(f"{trained} was trained without adapters: {fix}")
    if is_bucket(folder):
        raise UserError(f"safetensors are written to a local folder, not {folder}: copy it then")
    modules = modules_of(config.model, config.lora)
    adapters, base = load_adapters(trained, config, make_mesh(MeshConfig()))
    origin = base.folder.read_config()
    if config.lora.quantize_base != "none":
        warn(f"note: the adapters were trained on weights in {config.lora.quantize_base}")
    if origin.model.vocab_size != config.model.vocab_size:
        size = config.model.vocab_size
        warn(f"note: {base.folder} has another vocabulary; resize that of the base to {size:,}")
    with complete_folder(folder) as part:
        tensors = tensors_of(config.model, modules, adapters)
        save_tensors(tensors, part / "adapter_model.safetensors", folder)
        # PEFT finds the base by its path for transformers, which only an imported base has.
        path = origin.init.removeprefix("hf:") if origin.init.startswith("hf:") else None
        write_json(part / "adapter_config.json", adapter_config(config, modules, path))
        if integrity:
            write_checksums(part)


def modules_of(model: ModelConfig, lora: LoraConfig) -> list[Module]:
    """Returns the modules of transformers that have adapters."""
    family = family_of(model)
    names = family.transformers_names(model)
    packings = family.packing(model, model_type(model))
    by_name = {slot.name: slot for slot in slots(model, lora)}
    modules: dict[str, Module] = {}
    # Weights of one module overwrite each other with an equal entry, which lists all of them.
    for name in by_name:
        module = names[name].removesuffix(".weight")
        packing = packings.get(name, Packing((name,)))
        adapted = [by_name[part] for part in packing.parts if part in by_name]
        modules[module] = Module(module, packing, adapted)
    return list(modules.values())


def tensors_of(model: ModelConfig, modules: list[Module], adapters: dict) -> dict[str, np.ndarray]:
    """Returns the tensors of the file by name; `adapters` are those of all layers."""
    described = shapes(model)
    tensors: dict[str, np.ndarray] = {}
    for module in modules:
        layers = model.n_layers if is_stacked(module.slots[0].place.param) else 1
        for layer in range(layers):
            a, b = _matrices(module, described, adapters, layer)
            name = PREFIX + module.name.format(layer)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b)
    return tensors


def _matrices(
    module: Module, described: dict[str, tuple[int, ...]], adapters: dict, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A (rank, inputs) and B (outputs, rank) of a module in one layer.

    `described` are the shapes of the published weights.
    """
    pairs = {slot.name: _published(slot, adapters, layer) for slot in module.slots}
    # The A of all weights below each other, (sum of the ranks, inputs). B is block diagonal: the
    # rows of a weight have nonzero columns only for its own A, so that the matmul of B and A holds
    # each weight's update in its rows.
    a = np.concatenate([pair[0] for pair in pairs.values()])
    parts, column = [], 0
    for name in module.packing.parts:
        part = np.zeros((described[name][0], len(a)), np.float32)
        if name in pairs:
            b = pairs[name][1]
            part[:, column : column + b.shape[1]] = b
            column += b.shape[1]
        parts.append(part)
    # B has the rows of the module's outputs, also where transformers stores its weight transposed.
    return a, pack(replace(module.packing, transposed=False), parts)


def _published(slot: Slot, adapters: dict, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns A (rank, inputs) and B (outputs, rank) of a published weight in one layer."""
    place, pair = slot.place, pairs_of(adapters, slot.place.param)[slot.name]
    a, b = (np.asarray(pair[key], np.float32) for key in ("a", "b"))
    if is_stacked(place.param):
        a, b = a[layer], b[layer]
    outputs, inputs = place.order[: place.rows], place.order[place.rows :]
    # In the parameter, A is (input axes, rank) and B (rank, output axes). PEFT has both as
    # (outputs, inputs) matrices, whose axes have the order of the published weight.
    a = a.transpose(slot.inputs, *inputs).reshape(a.shape[-1], -1)
    b = b.transpose(*(axis - slot.inputs + 1 for axis in outputs), 0)
    return a, b.reshape(-1, b.shape[-1])


def adapter_config(stage: Stage, modules: list[Module], base: str | None) -> dict[str, Any]:
    """Returns the fields of adapter_config.json; `base` is the path of the base, if known."""
    lora = stage.lora
    assert lora.rank is not None
    names = _short_names(stage.model, modules)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, module in zip(names, modules):
        # The factor alpha / rank stays, although the ranks of several weights add up.
        if len(module.slots) > 1:
            ranks[name] = lora.rank * len(module.slots)
            alphas[name] = lora.alpha * len(module.slots)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": names,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "fan_in_fan_out": modules[0].packing.transposed,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _short_names(model: ModelConfig, modules: list[Module]) -> list[str]:
    """Returns the end of each module's name that no other module of the model has."""
    # GPT-2 has a c_proj both in attention and in the feed-forward layer.
    names = set(family_of(model).transformers_names(model).values())
    paths = [name.removesuffix(".weight").split(".") for name in names if name.endswith(".weight")]
    short = []
    for module in modules:
        parts = module.name.split(".")
        # PEFT adapts every module whose name ends like one of these, so that a name must be
        # unambiguous.
        same = [path for path in paths if path[-1] == parts[-1]]
        short.append(parts[-1] if len(same) == 1 else ".".join(parts[-2:]))
    return short
