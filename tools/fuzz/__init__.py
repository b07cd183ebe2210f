"""Random faulty inputs for every place where a user's input enters: each works or is refused.

`python -m tools.fuzz` tries them. See `tools.fuzz.harness` for what counts as a fault.
"""
