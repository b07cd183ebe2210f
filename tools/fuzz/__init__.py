"""A fuzzer: random faulty inputs for every place where a user's input enters the program.

`python -m tools.fuzz` tries them. `tools.fuzz.harness` defines which outcome is a fault.
"""
