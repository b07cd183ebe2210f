"""Two models on one text: do their tokenizers and their logits agree? One of them may be transformers' own reading of the files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.config import DataConfig, MeshConfig, MixtureConfig, OptimizerConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.llama import Llama
from codellama_jax.tokenizer import Tokenizer, missing_in
from codellama_jax.training.checkpoint import load_run
from codellama_jax.training.mesh import make_mesh, on_mesh
from codellama_jax.weights import load


@dataclass(frozen=True)
class Reader:
    """A model that reads text: `ids` of a text with BOS first, fp32 `logits_TV` of ids."""

    name: str
    ids: Callable[[str], list[int]]
    logits_TV: Callable[[list[int]], np.ndarray]


def ours(folder: epath.Path) -> Reader:
    """Opens a run or published weights with this code, in fp32."""
    mesh = make_mesh(MeshConfig())
    if load.kind_of(folder) == "run":
        run = load_run(str(folder), mesh=mesh)
        model, params, tokenizer = run.model, run.params, run.tokenizer
    else:
        _, source = load.open_published(folder)
        model, tokenizer = source.model, needed_tokenizer(folder)
        data = DataConfig(source.context, 1, MixtureConfig())
        params = load.place_params(source, Stage(model, data, OptimizerConfig(0.0), steps=0), mesh)
    exact = Llama(replace(model, compute_dtype="float32", remat="none"))

    def logits_TV(ids: list[int]) -> np.ndarray:
        tokens_BT, positions_BT = jnp.array([ids]), jnp.arange(len(ids))[None]
        with on_mesh(mesh), jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(exact.apply)({"params": params}, tokens_BT, positions_BT)[0])

    return Reader(f"{folder} here", lambda text: [tokenizer.bos_id, *tokenizer.encode(text)], logits_TV)


def needed_tokenizer(folder: epath.Path) -> Tokenizer:
    tokenizer = load.published_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"{missing_in(folder)}; there is none beside it either")
    return tokenizer


def theirs(folder: epath.Path) -> Reader:
    """Opens a folder with transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a file, every step of it is a line
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()

    def logits_TV(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].numpy()

    return Reader(f"{folder} in transformers", lambda text: tokenizer(text)["input_ids"], logits_TV)


def compare(folder: epath.Path, against: epath.Path | None, text: str, tokens: int) -> list[tuple[str, str]]:
    """Returns what a check prints, as (what, figure). The reference is transformers where it is installed and can read the files."""
    other = against or folder
    installed = importlib.util.find_spec("transformers") is not None and load.kind_of(other) == "hf"
    if not installed and against is None:
        raise UserError(f"nothing to check {folder} against: pass --against, or install the extra oracle for transformers' own reading")
    reader, reference = ours(folder), (theirs if installed else ours)(other)
    ids, reference_ids = (r.ids(text)[:tokens] for r in (reader, reference))
    a_TV, b_TV = reader.logits_TV(ids), reference.logits_TV(ids)
    V = min(a_TV.shape[1], b_TV.shape[1])  # the other may have padding, or no sentinels
    difference, divergence, agreed = measures(a_TV[:, :V], b_TV[:, :V])
    return [
        ("reference", reference.name),
        ("tokens", f"{len(ids)}, {'the same ids in both' if ids == reference_ids else 'OTHER ids in the reference'}"),
        ("largest logit difference", f"{difference:.3g}"),
        ("KL from the reference", f"{divergence:.3g} nats a token"),
        ("same likeliest token", f"{agreed} of {len(ids)}"),
    ]


def measures(a_TV: np.ndarray, b_TV: np.ndarray) -> tuple[float, float, int]:
    """Returns the largest logit difference, the mean KL(b || a) in nats, and at how many positions both have the same likeliest token."""
    log_a_TV, log_b_TV = (np.asarray(jax.nn.log_softmax(x, axis=-1), np.float64) for x in (a_TV, b_TV))
    divergence = float((np.exp(log_b_TV) * (log_b_TV - log_a_TV)).sum(1).mean())
    return float(np.abs(a_TV - b_TV).max()), divergence, int((a_TV.argmax(1) == b_TV.argmax(1)).sum())
