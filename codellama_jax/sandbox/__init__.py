"""Runs programs that a model wrote.

`Executor().run(programs)` yields (index, verdict) as they finish.
"""

from codellama_jax.sandbox.executor import Executor
from codellama_jax.sandbox.verdicts import Program, Verdict

__all__ = ["Executor", "Program", "Verdict"]
