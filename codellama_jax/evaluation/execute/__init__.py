"""Runs programs that a model wrote.

`Executor().run(programs)` yields (index, verdict) as they finish.
"""

from codellama_jax.evaluation.execute.pool import Executor
from codellama_jax.evaluation.execute.verdicts import Program, Verdict

__all__ = ["Executor", "Program", "Verdict"]
