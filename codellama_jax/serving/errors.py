"""Errors of requests, in the layout that clients of the OpenAI protocol parse."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
MOST_LOGGED = 300  # characters of an error's message
BUSY_SECONDS = 1  # that a refused client should wait before it tries again


class ApiError(Exception):
    """A request that is refused. The message names the field, its value and what is allowed."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        """Takes the HTTP status, the message, the field, and a code that programs compare."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def type(self) -> str:
        """The class of errors, as the OpenAI protocol names it."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return INVALID if self.status < 500 else "server_error"

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of the answer."""
        # Clients of the OpenAI library wait this long and then try again by themselves.
        if self.status in (429, 503):
            return {"retry-after": str(BUSY_SECONDS)}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """Returns the answer as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def invalid(param: str, problem: str, code: str | None = None) -> ApiError:
    """Returns the error of a field with a wrong value; the problem follows its name."""
    return ApiError(400, f"{param} {problem}", param, code)


def one_line(error: BaseException) -> str:
    """Returns the class of an error and the first line of its message, for the log."""
    # XLA's errors may run over hundreds of lines, and the first names the problem.
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:MOST_LOGGED]}"
