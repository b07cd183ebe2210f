"""Runs inside the sandbox: standard library only, with few imports.

Each process there is a copy of the interpreter that holds them.
"""
