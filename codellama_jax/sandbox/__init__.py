"""Runs programs that a model wrote, isolated from the machine and from the tests.

`Executor().run(programs)` yields (index, verdict) as the programs finish.
"""

from codellama_jax.sandbox.executor import Executor
from codellama_jax.sandbox.verdicts import Program, Verdict

__all__ = ["Executor", "Program", "Verdict"]
