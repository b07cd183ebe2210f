"""What a model is evaluated on after its stages: one dataclass and one file each.

`Experiment.probes` maps their names to them. A new probe needs its file and a line here. Importing
this starts no JAX.
"""

from codellama_jax.probes.bigram import Bigram
from codellama_jax.probes.completions import Completions
from codellama_jax.probes.infilling import Infilling, InfillingKinds
from codellama_jax.probes.infills import Infills
from codellama_jax.probes.key_retrieval import KeyRetrieval
from codellama_jax.probes.line_ends import LineEnds
from codellama_jax.probes.perplexity import Perplexity

__all__ = [
    "Bigram",
    "Completions",
    "Infilling",
    "InfillingKinds",
    "Infills",
    "KeyRetrieval",
    "LineEnds",
    "Perplexity",
]
