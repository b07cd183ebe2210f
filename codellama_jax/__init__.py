"""Code Llama in JAX: data, infilling, training, long context, generation and evaluation."""
