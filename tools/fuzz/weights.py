"""Inputs of import, check and export: folders of weights and of runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import damage
import flax
import numpy as np
import published
from etils import epath

from codellama_jax.checkpoints.folder import RunFolder, trained_under
from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import Experiment, from_dict
from codellama_jax.generation import commands as commands_of_generation
from codellama_jax.generation.settings import Sampling
from codellama_jax.report import reading as report_reading
from codellama_jax.report.report import write_report
from codellama_jax.runs import folder as run_folder
from codellama_jax.system.files import read_json, user_path
from codellama_jax.weights import commands, huggingface, integrity, load, meta, store
from codellama_jax.weights.layout import is_stacked, join, one_layer, parameters
from codellama_jax.weights.rows import added_tokens, trimmed
from tools.fuzz import mutations
from tools.fuzz.harness import made_once

METRIC = {"step": 1, "loss": 5.0, "tokens": 128, "seconds": 1.0, "tokens_per_second": 5.0}
VALIDATION = {"step": 1, "validation_loss": 5.0, "seconds": 1.0}
PROBES = {
    "perplexity": {"16": {"perplexity": 5.0, "tokens": 16, "rows": 1}},
    "infilling": {"psm": {"exact": 0.5, "examples": 4, "loss": 1.0}},
    "bigram": {"loss": 3.0},
    "samples": [{"prompt": "a", "completion": "b"}],
}
OTHER_FILES = ["added_tokens.json", "model.safetensors.index.json", "tokenizer.json"]
OTHER_FILES += ["pytorch_model.bin", "consolidated.safetensors", "model-00001.safetensors"]
OTHER_FILES += ["consolidated.02.pth", "consolidated.xx.pth", "params.json", "config.json"]
EXTRA = ["rope_scaling", "rope_parameters", "head_dim", "attention_bias", "hidden_act", "mlp_bias"]
EXTRA += ["partial_rotary_factor", "quantization_config", "use_scaled_rope", "multiple_of"]
EXTRA += ["ffn_dim_multiplier", "model_type", "tie_word_embeddings", "max_position_embeddings"]
EXTRA += ["rope_theta", "use_sliding_window", "layer_types", "original_max_position_embeddings"]


def originals() -> Path:
    """Returns a folder with the same small model in the subfolders `hf`, `meta` and `run`."""
    return made_once("weights", write_originals)


def write_originals(top: Path) -> None:
    """Writes the folders of `originals`."""
    folder = epath.Path(top)
    rng, params = np.random.default_rng(0), {}
    for param, (shape, _) in parameters(published.MODEL).items():
        params[param] = rng.normal(size=shape).astype(np.float32)
    nested = flax.traverse_util.unflatten_dict(params, sep=".")
    source = published.source_of(nested, published.MODEL)
    huggingface.write(source, published.tokenizer(), folder / "hf", integrity=True)
    # Two ranks, so that a missing or additional rank is among the faults.
    meta.write(source, published.tokenizer(), folder / "meta", ranks=2, integrity=True)
    commands.Import(str(folder / "hf"), str(folder / "run"), integrity=True)()
    stage = folder / "run" / store.ARM / store.STAGE
    lines = [METRIC, {**METRIC, "step": 2, "tokens": 256, "seconds": 2.0}, VALIDATION]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (stage / "probes.json").write_text(json.dumps(PROBES))
    # An imported run has never been trained: these are files that training would have written.
    (stage / "identity.txt").write_text("0" * 32)
    (folder / "run" / "corpus.json").write_text(json.dumps({"code": {"files": 5, "train": 4}}))


def weights_folders(rng: Random, folder: Path) -> Callable[[], object]:
    """A faulty folder of published weights, which is imported or checked."""
    kind = rng.choice(["hf", "hf", "meta"])
    root = folder / kind
    shutil.copytree(originals() / kind, root)
    for _ in range(rng.choice([1, 1, 1, 2])):
        change_weights(rng, root)
    path = str(root) if rng.random() < 0.97 else rng.choice(mutations.TEXTS)
    odd = rng.choice([*mutations.TEXTS, str(root / "tokenizer.model")])
    named = "" if rng.random() < 0.9 else odd
    action = rng.random()

    def call() -> None:
        # Mostly without writing, which takes longer.
        if action < 0.02:
            commands.Import(path, str(folder / "run"), named)()
        elif action < 0.08:
            commands.Check(path, integrity=True)()
        else:
            read_weights(path, named)

    return call


def read_weights(path: str, named: str) -> None:
    """Opens, checks and reads every parameter like `import`, but writes nothing."""
    root = user_path(path)
    _, source = load.open_published(root)
    tokenizer = load.needed_tokenizer(root, named)
    source = trimmed(source, tokenizer, added_tokens(root))
    for param in parameters(source.model):
        full = tuple(slice(0, n) for n in one_layer(source.model, param))
        for layer in range(source.model.n_layers if is_stacked(param) else 1):
            join(source, param, layer, full)


def change_weights(rng: Random, root: Path) -> None:
    """Damages one file of a folder of weights, or adds a file that does not belong there."""
    kind = rng.random()
    files = sorted(path for path in root.iterdir() if path.is_file() and not path.is_symlink())
    settings = root / ("config.json" if root.name == "hf" else "params.json")
    if kind < 0.4 and settings.is_file():
        damage_settings(rng, settings)
    elif kind < 0.7 and files:
        mutations.damage_file(rng, rng.choice(files))
    elif kind < 0.8:
        change_tensors(rng, root)
    elif kind < 0.9:
        index = {"weight_map": mutations.value(rng), "a": mutations.value(rng)}
        content = [b"", b"{}", b"[]", mutations.LFS_POINTER, json.dumps(index).encode()]
        other = root / rng.choice(OTHER_FILES)
        if other.is_file() or not os.path.lexists(other):  # writing to a pipe would wait
            other.write_bytes(rng.choice(content))
    elif files:
        mutations.replace_file(rng, rng.choice(files))


def damage_settings(rng: Random, file: Path) -> None:
    """Changes values of config.json or params.json, or adds fields of other models."""
    document = mutations.document_of(file.read_bytes())
    for _ in range(rng.choice([0, 1, 2]) if isinstance(document, dict) else 0):
        # Plausible fields with wrong values pass the first checks and reach the deeper ones.
        rope = {"type": mutations.value(rng), "factor": mutations.value(rng)}
        kind = rng.choice(["linear", "default", "llama3", None])
        newer = {"rope_type": kind, "factor": mutations.value(rng)}
        document[rng.choice(EXTRA)] = rng.choice([mutations.value(rng), rope, newer])
    document = mutations.mutate(rng, document, most=2)
    file.write_bytes(mutations.json_bytes(rng, document))


def change_tensors(rng: Random, root: Path) -> None:
    """Changes the header of a file of safetensors, or the pickle of a file of torch.save."""
    file = root / "model.safetensors"
    if root.name == "meta":
        pickled = pickle.dumps(rng.choice([mutations.value(rng), {"a": 1}, {1: 2}, []]))
        odd = rng.choice([b"", b"\x80\x02", b"(" * 5000, b"c__builtin__\neval\n."])
        content = rng.choice([pickled, odd])
        part = root / "consolidated.00.pth"
        if not part.is_file():
            return
        original = part.read_bytes()
        # The folder may have been damaged before, so that there is no archive to change.
        try:
            damage.repickled(root, content)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            part.write_bytes(original)
        return
    if not file.is_file():
        return
    data = file.read_bytes()
    # A safetensors file starts with the size of its header, which is JSON.
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return
    header = mutations.mutate(rng, mutations.document_of(data[8 : 8 + size]), least=1)
    text = mutations.json_bytes(rng, header)
    stream = io.BytesIO()
    # Mostly the right length, since a wrong one ends the reading at once.
    length = rng.choice([len(text), len(text), len(text), 0, 2**63, len(text) + 5])
    stream.write(length.to_bytes(8, "little") + text + data[8 + size :])
    file.write_bytes(stream.getvalue())


def run_folders(rng: Random, folder: Path) -> Callable[[], object]:
    """The folder of a run with damaged files, which is resumed, reported or exported."""
    root = folder / "runs" / "run"
    shutil.copytree(originals() / "run", root)
    experiment = from_dict(Experiment, read_json(originals() / "run" / "config.json"))
    names = ["config.json", "tokenizer.model", "corpus.json", "checksums.json"]
    inner = ["config.json", "done.json", "probes.json", "metrics.jsonl", "identity.txt"]
    imported = root / store.ARM / store.STAGE
    paths = [root / name for name in names]
    paths += [imported / name for name in (*inner, "checkpoints")]
    for _ in range(rng.choice([1, 1, 2, 4])):
        damage_state(rng, rng.choice(paths))
    files = sorted(path for path in (paths[-1]).rglob("*") if path.is_file())
    if files and rng.random() < 0.3:
        change = rng.choice([mutations.damage_file, mutations.replace_file])
        change(rng, rng.choice(files))
    action = rng.random()
    out, arm = epath.Path(root), ""
    stage = rng.choice(["", "weights"])
    if rng.random() < 0.1:
        arm = rng.choice(["imported", "imported@1", *mutations.TEXTS])
        stage = rng.choice(mutations.TEXTS)

    def call() -> None:
        if action < 0.15:
            trained_under(out.parent)
            with run_folder.opened_folder(experiment, RunFolder(out), fresh=False):
                pass
        elif action < 0.5:
            infill = commands_of_generation.Infill(
                str(out), "x", sampling=Sampling(), arm=arm, stage=stage
            )
            infill.order(infill.find())
        elif action < 0.8:
            report_reading.read_run(RunFolder(out), experiment)
        elif action < 0.87:
            write_report(out, experiment, "a claim")
        elif action < 0.92:
            store.open_run(out, arm, stage).tensor("final_norm")
        elif action < 0.94:
            commands.Export(str(out), str(folder / "exported"), "hf")()
        elif action < 0.96:
            load_run(str(out), arm, stage)
        else:
            integrity.verify(out)

    return call


def damage_state(rng: Random, path: Path) -> None:
    """Damages a file of a run. In metrics.jsonl mostly single lines are changed."""
    if path.name == "metrics.jsonl" and path.is_file() and rng.random() < 0.7:
        lines = [mutations.mutate(rng, line) for line in (METRIC, METRIC, VALIDATION)]
        path.write_bytes(b"\n".join(mutations.json_bytes(rng, line) for line in lines) + b"\n")
    elif path.name == "done.json" and rng.random() < 0.3:
        # A reference to another folder that leads anywhere, as after a run was moved or edited.
        path.write_text(json.dumps({"at": mutations.value(rng)})) if path.is_file() else None
    else:
        mutations.damage_file(rng, path)
