"""The hosts of one command: joining them, gathering their values, failing together.

Imports no JAX by itself: a command that never imported it runs on one host, and starts at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from codellama_jax.errors import UserError

Value = TypeVar("Value")


class Stopped(Exception):
    """The run was told to stop and has saved; holds the signal's number."""


def may_be_several() -> bool:
    """Returns whether the environment names other hosts to join."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1


def start_distributed() -> None:
    """Joins the other hosts of a pod, if there are any.

    On TPU and under Slurm JAX finds them by itself; elsewhere the three JAX_ variables name them.
    """
    if not may_be_several():
        return
    import jax

    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    else:
        jax.distributed.initialize()


def is_first() -> bool:
    """Returns whether this host writes files and prints results."""
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line on the first host."""
    if is_first():
        Console(soft_wrap=True).print(text, highlight=False, markup=False)


def gather(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of all hosts; each brings its own, ready for JSON."""
    if _is_only():
        return values
    from jax.experimental import multihost_utils

    own = np.frombuffer(json.dumps(values).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(own.size))))
    padded = np.pad(own, (0, longest - own.size), constant_values=ord(" "))
    gathered: dict[str, Any] = {}
    for text in multihost_utils.process_allgather(padded):
        gathered |= json.loads(bytes(text))
    return gathered


def on_all_hosts(action: Callable[[], Value]) -> Value:
    """Calls `action` on every host and returns its value.

    Raises a UserError of one host on all of them: the others would wait for it for ever.
    """
    if _is_only():
        return action()
    value, message = None, ""
    try:
        value = action()
    except UserError as error:
        message = str(error)
    index = sys.modules["jax"].process_index()
    for text in gather({str(index): message}).values():
        if text:
            raise UserError(text)
    return value  # type: ignore[return-value]


def on_first_host(action: Callable[[], Any]) -> None:
    """Calls `action` on the first host. Raises its UserError on all hosts."""
    on_all_hosts(lambda: action() if is_first() else None)


def wait_for_all(name: str) -> None:
    """Returns when every host has called this: JAX ends the others when one host exits."""
    if _is_only():
        return
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _is_only() -> bool:
    jax = sys.modules.get("jax")
    return jax is None or jax.process_count() == 1
