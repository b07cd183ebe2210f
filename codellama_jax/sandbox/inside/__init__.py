"""Code that runs inside the sandbox: standard library only, with few imports.

Each process of a sandbox is a fork of the interpreter that imported these modules: an import less
saves memory and start-up time for every program.
"""
