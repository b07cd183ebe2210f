"""One end of the pipe between the tests and the candidate: sends requests and serves them.

Only one end runs at a time. While an end waits for an answer it serves requests of the other end:
a test may pass a function as an argument, and the candidate then calls it back.

Messages are lists:

- a request is `["request", verb, pointers to the arguments, nodes, released numbers]`;
- an answer is `["answer", pointer to the result, changed arguments, nodes]`, or the same with
  "raise" and an exception as the result;
- `["refuse", kind, text]` is sent for a result that cannot be sent.

`packing` explains nodes and pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from codellama_jax.sandbox.inside import wire
from codellama_jax.sandbox.inside.packing import Packer, Unpacker, changed, snapshot
from codellama_jax.sandbox.inside.references import References
from codellama_jax.sandbox.inside.values import NotComparable


class Stopped(BaseException):
    """No more requests are possible. No `except Exception` of a test hides this."""


# These end the test, and are therefore not sent to the other end as an answer.
PROPAGATED = (NotComparable, Stopped, wire.WireError, wire.TooLargeError)
# Decoding a message that violates the protocol raises these.
_MALFORMED = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    StopIteration,
)
MAX_NESTED = 100  # requests within requests


class Peer(References):
    """One end of the pipe. `names` is the namespace of the program or test at this end."""

    def __init__(self, read_fd: int, write_fd: int, names: dict[str, Any]):
        super().__init__(names)
        self._read_fd, self._write_fd = read_fd, write_fd
        self._nested = 0

    def request(self, verb: str, *arguments: Any) -> Any:
        """Sends a request and returns its result, or raises the exception that the request raised.

        Lists and other mutable arguments get the content that they have at the other end
        afterwards.
        """
        packer = Packer(self.pack_other)
        pointers = packer.pack_all(arguments)
        self._send(["request", verb, pointers, packer.nodes, self.take_forgotten()])
        while True:
            message = self._receive()
            if message[0] != "request":
                return self._answer(message, packer.values, verb, arguments)
            self.serve(message)

    def serve(self, message: list[Any]) -> None:
        """Serves one request: decodes it, acts, and sends the answer."""
        try:
            _, verb, pointers, nodes, forgotten = message
            self.release(forgotten)
            unpacker = Unpacker(nodes, self.unpack_other)
            arguments = unpacker.get_all(pointers)
            before = snapshot(unpacker.values)
        except _MALFORMED:
            raise wire.WireError("not a request") from None
        self._nested += 1
        try:
            if self._nested > MAX_NESTED:
                raise RecursionError(f"more than {MAX_NESTED} calls within calls")
            head, result = "answer", self.act(verb, arguments)
        except PROPAGATED:
            # Sent as an answer, these could be caught by the candidate.
            raise
        except BaseException as error:
            head, result = "raise", error
        finally:
            self._nested -= 1
        packer = Packer(self.pack_other, unpacker.values)
        pointer = packer.pack(result)
        changes = []
        for index, children in before:
            value = unpacker.values[index]
            if changed(value, children):
                changes.append([index, packer.state(value)])
        self._send([head, pointer, changes, packer.nodes])

    def act(self, verb: str, arguments: Sequence[Any]) -> Any:
        """Performs a request and returns its result."""
        raise NotImplementedError

    # The operations of a proxy, see `remote`.

    def operate(self, value: Any, operator: str, arguments: Sequence[Any]) -> Any:
        """Applies an operator of the proxy `value` at the other end."""
        return self.request("op", operator, value, *arguments)

    def call(self, value: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls the object of the proxy `value` at the other end."""
        return self.request("call", value, kwargs or None, *args)

    def get(self, value: Any, name: str) -> Any:
        """Returns an attribute of the object of the proxy `value`."""
        return self.request("get", value, name)

    def request_items(self, iterator: Any, count: int) -> tuple[list[Any], BaseException | None]:
        """Returns up to `count` items, and the exception that ended the iterator, if any."""
        answer = self.request("next", iterator, count)
        if not _is_batch(answer, count):
            self.reject("not a batch of items")
        return answer

    def reject(self, reason: str) -> NoReturn:
        """Ends the test, because the other end violates the protocol."""
        raise wire.WireError(reason)

    # Messages.

    def _send(self, message: list[Any]) -> None:
        wire.send(self._write_fd, message)

    def _receive(self) -> list[Any]:
        message = wire.receive(self._read_fd)
        if type(message) is not list or not message:
            raise wire.WireError("not a message")
        return message

    def _answer(
        self, message: list[Any], sent: Sequence[Any], verb: str, arguments: Sequence[Any]
    ) -> Any:
        if message[0] == "refuse":
            # The answer is hostile: its types are checked before it is used.
            if list(map(type, message)) != [str, str, str]:
                raise wire.WireError("not an answer")
            self.refused(*message[1:])
        try:
            head, pointer, changes, nodes = message
            answer = Unpacker(nodes, self.unpack_other, sent)
            for index, children in changes:
                self.check_change(verb, arguments)
                answer.mutate(sent[index], children)
            result = answer.get(pointer)
        except _MALFORMED:
            raise wire.WireError("not a value") from None
        if head == "answer":
            return result
        if head != "raise" or not isinstance(result, BaseException):
            raise wire.WireError("not an answer")
        raise result

    def check_change(self, verb: str, arguments: Sequence[Any]) -> None:
        """Raises NotComparable if a request must not change its mutable arguments."""

    def refused(self, kind: str, text: str) -> None:
        """Ends the test, because the other end cannot send the result."""
        raise wire.WireError("not an answer")


def _is_batch(answer: Any, count: int) -> bool:
    if type(answer) is not tuple or len(answer) != 2 or type(answer[0]) is not list:
        return False
    items, error = answer
    return len(items) <= count and (error is None or isinstance(error, BaseException))
