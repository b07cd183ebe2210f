"""Probes: small evaluations of a model after each stage, one dataclass and one file each.

`Experiment.probes` maps names to probes. A new probe needs its file and an import here.

An experiment file imports this package before the command line is parsed, so a probe imports JAX
only inside `measure`.
"""

from codellama_jax.probes.bigram import Bigram
from codellama_jax.probes.completions import Completions
from codellama_jax.probes.held_out_functions import HeldOutFunctions
from codellama_jax.probes.infilling import Infilling, InfillingKinds
from codellama_jax.probes.infills import Infills
from codellama_jax.probes.key_retrieval import KeyRetrieval
from codellama_jax.probes.line_ends import LineEnds
from codellama_jax.probes.perplexity import Perplexity

# Experiment files import probes from here: these names are part of their interface.
__all__ = [
    "Bigram",
    "Completions",
    "HeldOutFunctions",
    "Infilling",
    "InfillingKinds",
    "Infills",
    "KeyRetrieval",
    "LineEnds",
    "Perplexity",
]
