"""What runs inside the sandbox: standard library only, few imports, for each process is a copy of the interpreter that holds them."""
