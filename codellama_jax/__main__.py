"""`python -m codellama_jax VERB`, the same as `launch.py VERB`."""

from codellama_jax.cli import main

if __name__ == "__main__":
    main()
