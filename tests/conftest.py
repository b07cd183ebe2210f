"""Eight CPU devices for every test, before JAX's backend starts; ranks must agree unless a test says otherwise."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # the tests compile far longer than they compute
