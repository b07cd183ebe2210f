"""Compares the tokens and logits of two models on a text.

Either model may be read by transformers, an independent implementation.
"""

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
    """A tokenizer and a model, of this project or of transformers."""

    name: str  # for the report
    ids: Callable[[str], list[int]]  # returns the token ids of a text, as a prompt
    logits_TV: Callable[[list[int]], np.ndarray]  # returns float32 [T, V] for T token ids


def project_reader(folder: epath.Path, named_tokenizer: str = "") -> Reader:
    """Opens a run or published weights with this project, in float32.

    `named_tokenizer` is the path of a tokenizer; "" takes the one in the folder.
    """
    mesh = make_mesh(MeshConfig())
    if load.kind_of(folder) == "run":
        trained = load_run(str(folder), mesh=mesh)
        model, params, tokenizer = trained.config, trained.params, trained.tokenizer
    else:
        _, source = load.open_published(folder)
        model, tokenizer = source.model, load.needed_tokenizer(folder, named_tokenizer)
        # Before loading, which takes minutes for a large model.
        check_rows(source, tokenizer, added_tokens(folder))
        params = load.place_params(source, model, mesh)
    # Rounding to bfloat16 would hide small mistakes; without a gradient, remat only costs time.
    config = replace(model, compute_dtype="float32", remat="none")
    module = family_of(config).module(config)

    def logits_TV(ids: list[int]) -> np.ndarray:
        # JAX would read the last row of a table of positions for every later one.
        config.check_length("the text that --tokens selects", len(ids))
        tokens_BT, positions_BT = jnp.array([ids]), jnp.arange(len(ids))[None]
        # The default precision of a TPU matmul is bfloat16, which would hide differences.
        with on_mesh(mesh), jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(module.apply)({"params": params}, tokens_BT, positions_BT)[0])

    def ids(text: str) -> list[int]:
        return tokenizer.prompt(text)

    return Reader(f"{folder} here", ids, logits_TV)


def transformers_reader(folder: epath.Path) -> Reader:
    """Opens a folder or a GGUF file with transformers, in float32.

    Raises UserError if it cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file, each of its updates would be a line
    where, options = str(folder), {}
    if load.kind_of(folder) == "gguf":
        where, options = str(folder.parent), {"gguf_file": folder.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **options).eval()
    except Exception as error:  # transformers raises many types for unexpected files
        fix = "pass --against with another folder or run"
        raise UserError(f"transformers cannot read {folder}: {reason(error)}; {fix}") from error

    def logits_TV(ids: list[int]) -> np.ndarray:
        try:
            with torch.inference_mode():
                return model(torch.tensor([ids])).logits[0].numpy()
        except IndexError as error:  # of a table of embeddings or positions
            problem = f"{len(ids):,} tokens have an id or a position that it lacks"
            raise UserError(f"{folder} in transformers: {problem}; lower --tokens") from error

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return Reader(f"{folder} in transformers", ids, logits_TV)


def _unreadable(folder: epath.Path) -> tuple[str, str]:
    """Returns why transformers cannot read a folder or file, "" if it can, and what to install.

    transformers reads its own layout and GGUF files.
    """
    kind = load.kind_of(folder)
    kinds = {"run": "a run", "meta": "in Meta's layout", "codegeex": "in CodeGeeX's layout"}
    if kind in kinds:
        return f"{kinds[kind]}, which transformers does not read", ""
    needed = ["torch", "transformers"]
    if kind == "gguf":
        needed.append("accelerate")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return "", ""
    names = " and ".join(missing)
    problem = f"in a layout that transformers reads only with {names}"
    return problem, f"`pip install {' '.join(missing)}` for a comparison with transformers"


def compare(
    folder: epath.Path,
    against: epath.Path | None,
    text: str,
    tokens: int,
    named_tokenizer: str = "",
) -> list[tuple[str, str]]:
    """Returns the lines of the comparison as (name, figure).

    Raises UserError if `tokens` is below 1, if a folder cannot be read, or if `against` is None and
    transformers is not installed.

    Args:
      folder: a run or published weights.
      against: the reference; None reads `folder` with transformers.
      text: the text that both models read.
      tokens: the number of its tokens that they read.
      named_tokenizer: the path of the tokenizer of `folder`; "" takes the one in the folder.
    """
    if tokens < 1:
        raise UserError(f"--tokens must be at least 1, got {tokens}")
    other = against or folder
    problem, install = _unreadable(other)
    if problem and against is None:
        references = "the published weights it comes from, or another run"
        fix = f"; or {install}" if install else ""
        raise UserError(f"{folder} is {problem}: pass --against DIR, {references}{fix}")
    if install:
        print(f"note: {other} is {problem}; this project reads it: {install}", file=sys.stderr)
    reader = project_reader(folder, named_tokenizer)
    reference = project_reader(other) if problem else transformers_reader(other)
    # Of both tokenizers, so that a difference between them is reported too.
    ids, reference_ids = reader.ids(text)[:tokens], reference.ids(text)[:tokens]
    # Both models read the same ids, so that a difference of tokenizers does not also appear as one
    # of logits.
    logits_TV, reference_TV = reader.logits_TV(ids), reference.logits_TV(ids)
    # One vocabulary may have padding or sentinels that the other lacks.
    V = min(logits_TV.shape[1], reference_TV.shape[1])
    difference, divergence, agreed = measures(logits_TV[:, :V], reference_TV[:, :V])
    same = "the same ids in both" if ids == reference_ids else "OTHER ids in the reference"
    return [
        ("reference", reference.name),
        ("tokens", f"{len(ids)}, {same}"),
        ("largest logit difference", f"{difference:.3g}"),
        ("KL from the reference", f"{divergence:.3g} nats per token"),
        ("same most likely token", f"{agreed} of {len(ids)}"),
    ]


def measures(logits_TV: np.ndarray, reference_TV: np.ndarray) -> tuple[float, float, int]:
    """Compares logits, float32 [T, V], with those of a reference.

    Returns the largest absolute difference of a logit, the mean over T of the Kullback-Leibler
    divergence from the reference in nats, and the number of positions with the same argmax.
    """
    # float64: the sums of many small probabilities would lose digits in float32.
    log_p_TV = np.asarray(jax.nn.log_softmax(logits_TV, axis=-1), np.float64)
    log_q_TV = np.asarray(jax.nn.log_softmax(reference_TV, axis=-1), np.float64)
    # KL(q || p) = sum of q (log q - log p) over the vocabulary, where q is the reference.
    divergence = float((np.exp(log_q_TV) * (log_q_TV - log_p_TV)).sum(1).mean())
    agreed = int((logits_TV.argmax(1) == reference_TV.argmax(1)).sum())
    return float(np.abs(logits_TV - reference_TV).max()), divergence, agreed
