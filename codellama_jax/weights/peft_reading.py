"""Reads an adapter folder of PEFT onto the run of its base model.

The result is the run of a stage with LoRA that has trained 0 steps: its checkpoint holds the
adapters and names the base, so that every command that reads runs reads it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from codellama_jax.checkpoints.base import ITEM, Base
from codellama_jax.checkpoints.folder import RunFolder, find_trained
from codellama_jax.checkpoints.loading import first_line, load_frozen, silence_orbax
from codellama_jax.config import (
    DataConfig,
    Experiment,
    LoraConfig,
    MeshConfig,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
    to_dict,
)
from codellama_jax.errors import UserError
from codellama_jax.models.family import family_of
from codellama_jax.models.lora import Slot, adaptable
from codellama_jax.models.parameters import is_stacked, parameters
from codellama_jax.models.published import Packing
from codellama_jax.sharding.mesh import make_mesh
from codellama_jax.system.files import is_bucket, write_json
from codellama_jax.system.settings import read_settings, shown_value
from codellama_jax.weights.folders import complete_folder
from codellama_jax.weights.huggingface import model_type
from codellama_jax.weights.inputs import file_names
from codellama_jax.weights.integrity import write_checksums
from codellama_jax.weights.layout import DTYPES, shapes
from codellama_jax.weights.packing import read_part
from codellama_jax.weights.peft import PREFIX
from codellama_jax.weights.safetensors_files import open_file
from codellama_jax.weights.store import ARM, STAGE

silence_orbax()
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # torch's file of older versions of PEFT
# Options of PEFT that change what the adapters compute, or add other weights.
UNSUPPORTED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"),
    *("layer_replication", "lora_bias", "trainable_token_indices", "target_parameters"),
    *("use_qalora", "alora_invocation_tokens", "arrow_config"),
)
# Their first values are parts of the base, which is then another one than the published weights.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq")
MAX_RANK, MAX_ALPHA = 65_536, 1e6


def is_adapter(folder: epath.Path) -> bool:
    """Returns whether a folder holds adapters and no model."""
    names = file_names(folder)
    return CONFIG in names and "config.json" not in names


def import_adapter(
    folder: epath.Path, base_run: epath.Path, run: epath.Path, integrity: bool = False
) -> None:
    """Writes the adapters of a folder as a run.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      base_run: the run of the base, whose tokenizer is used as well.
      run: a folder that does not exist yet.
      integrity: whether to write checksums of the files as well.

    Raises UserError for a file that is missing, adapters that cannot be read, or another base.
    """
    trained, base_stage = find_trained(base_run)
    rank, alpha = _numbers(folder)
    model = base_stage.model
    adapters, targets = _adapters(folder, model, rank)
    data = DataConfig(
        base_stage.data.seq_len, batch_size=1, mixture=MixtureConfig(), chat=base_stage.data.chat
    )
    lora = LoraConfig(rank, alpha=alpha, targets=targets)
    optimizer = OptimizerConfig(peak_lr=0.0)
    stage = Stage(model, data, optimizer, steps=0, init=f"run:{base_run}", lora=lora)
    # The identity of the base, with which other weights in its place are noticed later.
    _, base = load_frozen(stage, Base(trained, None), make_mesh(MeshConfig()))
    tokenizer = trained.load_tokenizer()
    arms = {ARM: {STAGE: stage}}
    experiment = Experiment(run.name, "peft", arms, TokenizerConfig(tokenizer.file_name))
    with complete_folder(run) as part:
        written = RunFolder(part)
        inner = written.stage(ARM, STAGE)
        # As it is referred to from the folder's final place.
        reference = base.reference(RunFolder(run).stage(ARM, STAGE))
        _save(adapters, reference, inner.checkpoint(0), run)
        write_json(inner.config, to_dict(stage))
        inner.mark_done(step=0, tokens=0)
        written.save_tokenizer(tokenizer)
        write_json(written.config, to_dict(experiment))
        if integrity:
            write_checksums(part)


def _numbers(folder: epath.Path) -> tuple[int, float]:
    """Returns rank and alpha. Raises UserError for a missing file or an unsupported option."""
    if is_bucket(folder):
        raise UserError(f"{folder}: safetensors are read from a local folder; copy it first")
    names = file_names(folder)
    if CONFIG not in names:
        raise UserError(f"{folder} has no {CONFIG}: --base is for a folder that PEFT saved")
    if TENSORS not in names:
        problem, fix = f"{folder} has no {TENSORS}", "copy it too"
        if PICKLED in names:
            problem += f", only {PICKLED}"
            fix = "save the adapters again with safe_serialization=True"
        raise UserError(f"{problem}: {fix}")
    settings = read_settings(folder / CONFIG)
    path, values = settings.file, settings.values
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {shown_value(kind)}: only LORA is read")
    fix = "merge the adapters with PEFT's merge_and_unload, and import the model"
    for name in UNSUPPORTED:
        if values.get(name):
            problem = f"{name} is {shown_value(values[name])}"
            raise UserError(f"{path}: {problem}, which is not read: {fix}")
    if values.get("bias", "none") != "none":
        raise UserError(f"{path}: bias is {shown_value(values['bias'])}, not none: {fix}")
    initial = str(values.get("init_lora_weights")).lower()
    if initial.startswith(BASE_CHANGING):
        raise UserError(f"{path}: init_lora_weights is {initial}, which changed the base: {fix}")
    rank, alpha = settings.integer("r", MAX_RANK), settings.real("lora_alpha", MAX_ALPHA)
    # Rank-stabilized adapters are divided by the root of the rank instead.
    return rank, alpha * (math.sqrt(rank) if settings.flag("use_rslora") else 1.0)


def _adapters(folder: epath.Path, model: ModelConfig, rank: int) -> tuple[dict, tuple[str, ...]]:
    """Returns the adapters as `models.lora.boxed_adapters` has them, and their targets.

    Raises UserError for a tensor that is missing, unknown, or of another shape.
    """
    path = folder / TENSORS
    opened = open_file(path)
    tensors = {}
    for name in opened.keys():  # noqa: SIM118, because it is not a dict
        dtype = opened.get_slice(name).get_dtype()
        # Of other types some are unknown to NumPy, and the others no weights.
        if dtype not in DTYPES:
            readable = ", ".join(DTYPES)
            raise UserError(f"{path}: {name} is {dtype}: only adapters in {readable} are read")
        tensors[name] = opened.get_tensor(name)
    family = family_of(model)
    names = family.transformers_names(model)
    packings = family.packing(model, model_type(model))
    adapters: dict = {}
    targets: list[str] = []
    used: set[str] = set()
    for name, slot in adaptable(model).items():
        module = f"{PREFIX}{names[name].removesuffix('.weight')}"
        # B has the rows of the outputs, also where transformers stores the weight transposed.
        packing = replace(packings.get(name, Packing((name,))), transposed=False)
        stacked = is_stacked(slot.place.param)
        modules = [module.format(layer) for layer in range(model.n_layers if stacked else 1)]
        needed = {f"{each}.lora_A.weight" for each in modules}
        needed |= {f"{each}.lora_B.weight" for each in modules}
        # A weight without any adapter is no target. One with some of its tensors is incomplete,
        # which `_tensor` reports.
        if needed.isdisjoint(tensors):
            continue
        used |= needed
        pairs = []
        for each in modules:
            a, b = _pair(path, tensors, each, packing, shapes(model), name, rank)
            pairs.append(_ours(slot, model, a, b))
        # The dotted name of the parameter becomes nested dicts, as Flax has the parameters.
        node = adapters
        for part in slot.place.param.split("."):
            node = node.setdefault(part, {})
        node[name] = jax.tree.map(_stacked, *pairs) if stacked else pairs[0]
        targets.append(name)
    unknown = sorted(set(tensors) - used)
    if unknown or not targets:
        first = f"tensor {unknown[0]} is no adapter" if unknown else "there is no adapter"
        allowed = f"of a matmul of the base's layers, which are {', '.join(adaptable(model))}"
        raise UserError(f"{path}: {first} {allowed}")
    return adapters, tuple(targets)


def _stacked(*layers: np.ndarray) -> np.ndarray:
    return np.stack(layers)


def _pair(
    path: epath.Path,
    tensors: dict[str, np.ndarray],
    module: str,
    packing: Packing,
    described: dict[str, tuple[int, ...]],
    name: str,
    rank: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A (rank, inputs) and B (outputs, rank) of a published weight.

    Args:
      path: the file, for messages.
      tensors: all of it.
      module: of one layer, which holds the weight.
      packing: how B holds the rows of the weight.
      described: shapes of the published weights.
      name: the published weight.
      rank: of the adapters.

    Raises UserError for a tensor that is missing, or of another shape.
    """
    rows = sum(described[part][0] for part in packing.parts)
    a = _tensor(path, tensors, f"{module}.lora_A.weight", (rank, described[name][1]))
    b = _tensor(path, tensors, f"{module}.lora_B.weight", (rows, rank))
    # B is read like the weight itself, with the rank in the place of the inputs.
    outputs = described | {part: (described[part][0], rank) for part in packing.parts}
    everything = (slice(None), slice(None))
    return a, read_part(packing, name, outputs, everything, b.__getitem__)


def _tensor(
    path: epath.Path, tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{path} has no {name}: is the file complete?")
    tensor = tensors[name]
    if tensor.shape != shape:
        fix = "give the run of the model that the adapters were trained on with --base"
        raise UserError(f"{path}: {name} has shape {tensor.shape}, the base needs {shape}: {fix}")
    return tensor.astype(np.float32)


def _ours(slot: Slot, model: ModelConfig, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Returns A (*I, R) and B (R, *X) of a layer, given (rank, inputs) and (outputs, rank)."""
    place = slot.place
    shape, _ = parameters(model)[place.param]
    section = slot.section(shape[1:] if is_stacked(place.param) else shape)
    outputs, inputs = place.order[: place.rows], place.order[place.rows :]
    rank = len(a)
    # The inverse of the permutations with which `peft` writes them.
    a = a.reshape(rank, *(section[axis] for axis in inputs))
    a = a.transpose(np.argsort((slot.inputs, *inputs)))
    b = b.reshape(*(section[axis] for axis in outputs), rank)
    b = b.transpose(np.argsort((*(axis - slot.inputs + 1 for axis in outputs), 0)))
    return {"a": a, "b": b}


def _save(
    adapters: dict, reference: dict[str, Any], checkpoint: epath.Path, run: epath.Path
) -> None:
    """Writes a checkpoint of adapters. Raises UserError naming the run if that fails."""
    items = {"params": ocp.args.StandardSave(adapters), ITEM: ocp.args.JsonSave(reference)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(checkpoint, ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises many kinds
        raise UserError(f"cannot write {run}: {first_line(error)}") from error
