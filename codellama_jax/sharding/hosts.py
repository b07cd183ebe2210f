"""The hosts of one command: joining them, gathering their values, failing together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from codellama_jax.errors import UserError


class Stopped(Exception):
    """The run was told to stop and has saved; holds the signal's number."""


def start_distributed() -> None:
    """Joins the other hosts of a pod.

    On TPU and under Slurm JAX finds them by itself; elsewhere the three JAX_ variables name them.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    elif (
        "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    ):
        jax.distributed.initialize()


def say(text: str) -> None:
    """Prints a line on the first host."""
    if jax.process_index() == 0:
        Console(soft_wrap=True).print(text, highlight=False, markup=False)


def gather(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of all hosts; each brings its own, ready for JSON."""
    if jax.process_count() == 1:
        return values
    own = np.frombuffer(json.dumps(values).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(own.size))))
    padded = np.pad(own, (0, longest - own.size), constant_values=ord(" "))
    gathered: dict[str, Any] = {}
    for text in multihost_utils.process_allgather(padded):
        gathered |= json.loads(bytes(text))
    return gathered


def on_all_hosts(action: Callable[[], Any]) -> Any:
    """Calls `action` on every host and returns its value.

    Raises a UserError of one host on all of them: the others would wait for it for ever.
    """
    value, message = None, ""
    try:
        value = action()
    except UserError as error:
        message = str(error)
    for text in gather({str(jax.process_index()): message}).values():
        if text:
            raise UserError(text)
    return value


def on_first_host(action: Callable[[], Any]) -> None:
    """Calls `action` on the first host. Raises its UserError on all hosts."""
    on_all_hosts(lambda: action() if jax.process_index() == 0 else None)
