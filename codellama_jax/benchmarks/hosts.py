"""What several hosts of a pod do together. A command that never imported JAX runs on one host.

JAX is imported only where a host has joined others or a model is loaded, because it takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from codellama_jax.errors import UserError

Result = TypeVar("Result")


def may_be_several() -> bool:
    """Returns whether the environment may name other hosts to join."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return int(os.environ.get("SLURM_NTASKS", "1")) > 1


def is_first() -> bool:
    """Returns whether this host writes files and prints results."""
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0


def on_all_hosts(action: Callable[[], Result]) -> Result:
    """Calls `action` on every host.

    A UserError on one of them is raised on all, or the others would wait for it without end.
    """
    jax = sys.modules.get("jax")
    if jax is None or jax.process_count() == 1:
        return action()
    from codellama_jax.sharding.hosts import gather

    result, message = None, ""
    try:
        result = action()
    except UserError as error:
        message = str(error)
    messages = gather({str(jax.process_index()): message})
    for message in filter(None, messages.values()):
        raise UserError(message)
    return result  # type: ignore[return-value]


def wait_for_all(name: str) -> None:
    """Returns when every host has called this; JAX would end a host that works on alone."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
