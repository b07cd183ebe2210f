"""Model families. Importing this package defines those of the library, and starts no JAX."""

from codellama_jax.models.family import register
from codellama_jax.models.gpt.config import GPTConfig
from codellama_jax.models.gpt.family import GPTFamily
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.family import LlamaFamily

register(LlamaConfig, LlamaFamily())
register(GPTConfig, GPTFamily())
