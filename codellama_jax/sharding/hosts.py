"""The hosts of one command: joining them, gathering their values, failing together.

This module does not import JAX unless there are several hosts. A command that does not import JAX
itself runs on one host and starts at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from codellama_jax.errors import UserError

Value = TypeVar("Value")


class Stopped(Exception):
    """A signal stopped the run, which has saved. The argument is the signal's number."""


def may_be_several() -> bool:
    """Returns whether environment variables name other hosts to join."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1


def start_distributed() -> None:
    """Joins the other hosts of a pod, if there are any.

    On TPU and under Slurm JAX finds them by itself. Elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID name them.
    """
    # A command on one host must start without a network, and without importing JAX here.
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
    """Prints a line, on the first host only."""
    if is_first():
        # Not by rich: it replaces names of emojis, as in the path runs/:car:/x, and imports a part
        # of itself with the first line. In a timer's thread that fails while the main thread
        # imports TFDS, whose lazy imports replace Python's function for all threads.
        print(text, flush=True)


def gather(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of all hosts. Every host must call it.

    `values` are entries of this host that JSON can represent, under names that no other host uses.
    """
    if _is_only():
        return values
    from jax.experimental import multihost_utils

    # JAX gathers arrays of equal shape, so the text is padded to the longest one with spaces, which
    # JSON ignores.
    encoded = np.frombuffer(json.dumps(values).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(encoded.size))))
    padded = np.pad(encoded, (0, longest - encoded.size), constant_values=ord(" "))
    gathered: dict[str, Any] = {}
    for text in multihost_utils.process_allgather(padded):
        gathered |= json.loads(bytes(text))
    return gathered


def on_all_hosts(action: Callable[[], Value]) -> Value:
    """Calls `action` on every host and returns this host's value. Every host must call it.

    Raises:
      UserError: on all hosts if `action` raises it on one of them. Without this the others would
        wait for ever in their next collective.
    """
    if _is_only():
        return action()
    # A list, because None may be a value of `action`.
    values: list[Value] = []
    message = ""
    try:
        values.append(action())
    except UserError as error:
        message = str(error)
    index = sys.modules["jax"].process_index()
    # A collective in itself: every host gets here, with a message or without one.
    for text in gather({str(index): message}).values():
        if text:
            raise UserError(text)
    return values[0]


def on_first_host(action: Callable[[], Any]) -> None:
    """Calls `action` on the first host. Every host must call it.

    Raises:
      UserError: on all hosts if `action` raises it.
    """
    on_all_hosts(lambda: action() if is_first() else None)


def wait_for_all(name: str) -> None:
    """Returns when every host has called this with the same name.

    Call it before exiting: JAX ends the other hosts as soon as one host exits.
    """
    if _is_only():
        return
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _is_only() -> bool:
    """Returns whether this host is the only one of the command."""
    jax = sys.modules.get("jax")
    return jax is None or jax.process_count() == 1
