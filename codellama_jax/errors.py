"""The exception for mistakes that a user can fix.

Imports nothing, so that every package can raise it.
"""


class UserError(Exception):
    """A mistake that the user can fix.

    The command line prints it as one line on stderr and exits with code 2. The message names the
    field or file, its value, the values that are allowed, and the fix.
    """


def name_list(names: list[str]) -> str:
    """Returns a list of names for a message of one line."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
