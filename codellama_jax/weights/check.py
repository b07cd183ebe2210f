"""Compares the tokens and logits of two models on a text; transformers may read one of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from codellama_jax.checkpoints.loading import load_run
from codellama_jax.config import MeshConfig
from codellama_jax.errors import UserError
from codellama_jax.models.family import family_of
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system.files import reason
from codellama_jax.weights import load
from codellama_jax.weights.rows import added_tokens, check_rows


@dataclass(frozen=True)
class Reader:
    """A model that reads text: `ids` of a text with BOS first, fp32 `logits_TV` of ids."""

    name: str
    ids: Callable[[str], list[int]]
    logits_TV: Callable[[list[int]], np.ndarray]


def ours(folder: epath.Path, named_tokenizer: str = "") -> Reader:
    """Opens a run or published weights with this code, in fp32."""
    mesh = make_mesh(MeshConfig())
    if load.kind_of(folder) == "run":
        trained = load_run(str(folder), mesh=mesh)
        model, params, tokenizer = trained.config, trained.params, trained.tokenizer
    else:
        _, source = load.open_published(folder)
        model, tokenizer = source.model, load.needed_tokenizer(folder, named_tokenizer)
        check_rows(source, tokenizer, added_tokens(folder))
        params = load.place_params(source, model, mesh)
    config = replace(model, compute_dtype="float32", remat="none")
    exact = family_of(config).module(config)

    def logits_TV(ids: list[int]) -> np.ndarray:
        tokens_BT, positions_BT = jnp.array([ids]), jnp.arange(len(ids))[None]
        with on_mesh(mesh), jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(exact.apply)({"params": params}, tokens_BT, positions_BT)[0])

    def ids(text: str) -> list[int]:
        return [tokenizer.bos_id, *tokenizer.encode(text)]

    return Reader(f"{folder} here", ids, logits_TV)


def theirs(folder: epath.Path) -> Reader:
    """Opens a folder with transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a file, every step of it is a line
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    except Exception as error:  # transformers raises anything for files that it does not expect
        fix = "pass --against with another folder or run"
        raise UserError(f"transformers cannot read {folder}: {reason(error)}; {fix}") from error

    def logits_TV(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].numpy()

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return Reader(f"{folder} in transformers", ids, logits_TV)


def compare(
    folder: epath.Path,
    against: epath.Path | None,
    text: str,
    tokens: int,
    named_tokenizer: str = "",
) -> list[tuple[str, str]]:
    """Returns the rows that a check prints, as (name, figure).

    Args:
      folder: a run or published weights.
      against: the reference; by default transformers' reading of `folder`.
      text: the text that both models read.
      tokens: how many tokens of it they read.
      named_tokenizer: path of the tokenizer.model of `folder`, by default the one in it.
    """
    if tokens < 1:
        raise UserError(f"--tokens must be at least 1, got {tokens}")
    other = against or folder
    installed = importlib.util.find_spec("transformers") is not None and load.kind_of(other) == "hf"
    if not installed and against is None:
        fix = "pass --against, or install the extra oracle to compare with transformers"
        raise UserError(f"nothing to check {folder} against: {fix}")
    reader = ours(folder, named_tokenizer)
    reference = theirs(other) if installed else ours(other)
    ids, reference_ids = reader.ids(text)[:tokens], reference.ids(text)[:tokens]
    a_TV, b_TV = reader.logits_TV(ids), reference.logits_TV(ids)
    V = min(a_TV.shape[1], b_TV.shape[1])  # the other may have padding, or no sentinels
    difference, divergence, agreed = measures(a_TV[:, :V], b_TV[:, :V])
    same = "the same ids in both" if ids == reference_ids else "OTHER ids in the reference"
    return [
        ("reference", reference.name),
        ("tokens", f"{len(ids)}, {same}"),
        ("largest logit difference", f"{difference:.3g}"),
        ("KL from the reference", f"{divergence:.3g} nats per token"),
        ("same most likely token", f"{agreed} of {len(ids)}"),
    ]


def measures(a_TV: np.ndarray, b_TV: np.ndarray) -> tuple[float, float, int]:
    """Compares two tables of logits.

    Returns the largest difference, the mean KL(b || a) in nats, and at how many positions both have
    the same most likely token.
    """
    log_a_TV = np.asarray(jax.nn.log_softmax(a_TV, axis=-1), np.float64)
    log_b_TV = np.asarray(jax.nn.log_softmax(b_TV, axis=-1), np.float64)
    divergence = float((np.exp(log_b_TV) * (log_b_TV - log_a_TV)).sum(1).mean())
    agreed = int((a_TV.argmax(1) == b_TV.argmax(1)).sum())
    return float(np.abs(a_TV - b_TV).max()), divergence, agreed
