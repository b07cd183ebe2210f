"""The end of the tests. A message of the candidate is a claim: plain data, or a proxy.

Rules against forged results:

- An operator of the candidate's object never decides about a value of the test: `==` would get the
  expected value and could return True. A test that needs such an operator is not comparable.
- Results that the object computes without a value of the test (its length, truth, items,
  attributes) are claims like any returned value: the test compares them.
- Some behaviour is legitimate in most tests and a forgery in a few, such as an exception that ends
  a loop of the test. It is recorded as a doubt: a test that passes in spite of it is not
  comparable, a test that fails has failed.

`served` holds the requests of the candidate for objects of the test.
"""

from __future__ import annotations

import dis
import os
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from codellama_jax.sandbox.inside import names, remote, wire
from codellama_jax.sandbox.inside.peer import Peer, Stopped
from codellama_jax.sandbox.inside.served import (
    ACTIONS,
    TEST_MODULE,
    defined_by_test,
    is_open,
    may_be_called,
    methods_of,
    operator_of,
)
from codellama_jax.sandbox.inside.values import NotComparable

_NUMBERS = ("__float__", "__int__", "__index__", "__complex__")
_RAISE, _END_ASYNC_FOR = dis.opmap["RAISE_VARARGS"], dis.opmap["END_ASYNC_FOR"]
# Exceptions that end an iteration in C code, or make it treat an item or attribute as missing.
_ENDS = (StopIteration, StopAsyncIteration)
_SILENT = (*_ENDS, IndexError, AttributeError)
_MAX_SILENT = 1000  # recorded exceptions before those that were caught are dropped
_IN_PLACE = {name for name in remote.BINARY if name.startswith("__i")}
# Streams and functions that tests replace to give input and to capture output.
_REPLACEABLE = [("sys", "stdin"), ("sys", "stdout"), ("sys", "stderr")]
_REPLACEABLE += [("builtins", "print"), ("builtins", "input")]


class Tests(Peer):
    """The trusted end. `verdict` is (status, detail) once the test has ended early."""

    is_trusted = True

    def __init__(self, read_fd: int, write_fd: int, program_names: dict[str, Any]):
        super().__init__(read_fd, write_fd, program_names)
        self.verdict: tuple[str, str] | None = None
        self._doubts: list[str] = []  # reasons why a test that passes is not comparable
        self._silent: list[Exception] = []  # exceptions of the candidate, see `_is_caught`
        self._originals = {key: _current(*key) for key in _REPLACEABLE}
        self._replaced = dict(self._originals)  # as they are in the candidate's process
        # (number of an object, operator) -> the number that it gave.
        self._numbers_given: dict[tuple[int, str], str] = {}

    def request(self, verb: str, *arguments: Any) -> Any:
        """Sends a request to the candidate and returns its result.

        Raises Stopped once the test has ended early.
        """
        if self.verdict:
            raise Stopped(self.verdict[1])
        try:
            # The candidate must print into the stream that the test has put in place.
            for key, replaced in self._replaced.items():
                if _current(*key) is not replaced:
                    super().request("replace", *key, self._replacement(key))
            return super().request(verb, *arguments)
        except wire.WireError as error:
            self._stop("error", str(error))
        except wire.TooLargeError as error:
            self._stop("too_large", str(error))
        except Exception as error:
            self._note(error, verb, arguments)
            raise
        raise Stopped(self.verdict[1] if self.verdict else "")

    def _replacement(self, key: tuple[str, str]) -> Any:
        """Returns the current stream or function, None if it is the original."""
        value = self._replaced[key] = _current(*key)
        return None if value is self._originals[key] else value

    def doubt(self) -> str:
        """Returns why a test that passes is not comparable; the empty string for no reason."""
        lost = [error for error in self._silent if not _is_caught(error)]
        if lost:
            return f"{type(lost[0]).__name__} of the candidate is lost in the test's iteration"
        return self._doubts[0] if self._doubts else ""

    def _note(self, error: Exception, verb: str, arguments: Sequence[Any]) -> None:
        """Records an exception of the candidate that may make the test pass without a check."""
        if any(names.name_of(base) == "unittest.case:SkipTest" for base in type(error).__mro__):
            self._doubts.append("the candidate skips a test")
        # StopIteration is the regular result of __next__. Anywhere else it would silently end a
        # loop of the test.
        is_step = verb == "op" and arguments[0] == "__next__"
        if isinstance(error, _ENDS if verb != "call" else _SILENT) and not is_step:
            if len(self._silent) > _MAX_SILENT:
                self._silent = [kept for kept in self._silent if not _is_caught(kept)]
            self._silent.append(error)

    def check_change(self, verb: str, arguments: Sequence[Any]) -> None:
        """Raises NotComparable if an operator changes its operand, such as the expected value."""
        if verb == "op" and arguments[0] in (*remote.BINARY, *remote.COMPARISONS):
            raise NotComparable(f"{arguments[0]} changes its operand")

    def request_name(self, name: str) -> tuple[str, Any]:
        """Returns the kind (missing, module or value) and the value of a global name.

        The name is one of the candidate's process.
        """
        answer = self.request("name", name)
        if type(answer) is not tuple or len(answer) != 2 or type(answer[0]) is not str:
            self.reject("not the value of a name")
        if answer[0] == "module" and type(answer[1]) is not str:
            self.reject("not a module")
        return answer

    def reject(self, reason: str) -> NoReturn:
        self._stop("error", reason)
        raise Stopped(reason)

    def refused(self, kind: str, text: str) -> None:
        if kind == "not_comparable":
            raise NotComparable(_short(text))
        if kind not in ("too_large", "out_of_memory"):
            raise wire.WireError("not an answer")
        self._stop(kind, _short(text))
        raise Stopped(text)

    def _stop(self, status: str, detail: str) -> None:
        self.verdict = self.verdict or (status, detail)

    # The candidate's objects.

    def operate(self, value: Any, operator: str, arguments: Sequence[Any]) -> Any:
        """Applies an operator of the candidate's object."""
        if operator in remote.COMPARISONS:
            return self._compare(value, operator, arguments[0])
        if operator == "__exit__":
            return self._leave(value, arguments)
        # For a subclass of a list, dict or set the operator of the plain type is applied here, to
        # the object's content.
        base = _container(value)
        if operator == "__contains__":
            if base is None:
                return _is_among(arguments[0], value)
            return base.__contains__(self._plain(value), arguments[0])
        if operator == "__getitem__" and _is_used_by_library():
            if base is None:
                raise NotComparable(f"the standard library takes items of {_name(value)}")
            return base.__getitem__(self._plain(value), arguments[0])
        if operator in remote.BINARY and not remote.is_remote(arguments[0]):
            if base is not None:
                return self._combine(base, value, operator, arguments[0])
            return self._seen(super().operate(value, operator, arguments))
        objects = (value, *arguments) if operator in remote.BINARY else (value,)
        result = self._result_of(objects, super().operate, value, operator, arguments)
        if operator in _NUMBERS:
            self._check_number(value, operator, result)
        return result

    def call(self, value: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls the candidate's object."""
        return self._result_of((value,), super().call, value, args, kwargs)

    def get(self, value: Any, name: str) -> Any:
        """Returns an attribute of the candidate's object."""
        return self._result_of((value,), super().get, value, name)

    def request_items(self, iterator: Any, count: int) -> tuple[list[Any], BaseException | None]:
        """Returns up to `count` items, and the exception that ended the iterator, if any."""
        if remote.has_seen(iterator):
            raise NotComparable("items of an object that was computed from a value of the test")
        return super().request_items(iterator, count)

    def _leave(self, value: Any, arguments: Sequence[Any]) -> Any:
        """Ends a `with` block. The candidate may suppress an exception that the test raises."""
        kind, error, traceback = arguments
        # The traceback is withheld: its frames hold the values of the test.
        exit_arguments = (kind, error, None)
        result = self._result_of((value,), super().operate, value, "__exit__", exit_arguments)
        if result and error is not None and not _is_raised_by_test(error, traceback):
            self._doubts.append(f"{_name(value)} suppresses {type(error).__name__} in the test")
        return result

    def _check_number(self, value: Any, operator: str, number: Any) -> None:
        """Raises NotComparable for an object that is converted to two different numbers.

        It could be one number in a comparison and another one in the next.
        """
        key = (remote.number_of(value), operator)
        if self._numbers_given.setdefault(key, repr(number)) != repr(number):
            raise NotComparable(f"{_name(value)} is now one number and now another one")

    def _combine(self, base: type, value: Any, operator: str, other: Any) -> Any:
        """Applies a binary operator of `base`, the plain type that the object's class extends."""
        if operator in _IN_PLACE:
            raise NotComparable(f"{operator} changes {_name(value)}")
        function = getattr(base, operator, None)
        return NotImplemented if function is None else function(self._plain(value), other)

    def _compare(self, value: Any, operator: str, other: Any) -> Any:
        """Compares the candidate's object with another value, without showing it that value."""
        if remote.is_remote(other):
            return self.request("op", operator, value, other)
        base = _container(value)
        if base is not None:
            return getattr(base, operator)(self._plain(value), other)
        if defined_by_test(type(other)):
            # Python then applies the operator of the test's object.
            return NotImplemented
        if operator not in ("__eq__", "__ne__"):
            raise NotComparable(f"{_name(value)} is ordered beside a {type(other).__name__}")
        # The candidate gets a random value instead of `other`. The two must differ: an object that
        # equals a value that it cannot know would equal every value.
        answer = self.request("op", "__eq__", value, _decoy(other))
        if answer is NotImplemented:
            return NotImplemented
        if answer is False:
            raise NotComparable(f"{_name(value)} is compared with a {type(other).__name__}")
        return operator == "__ne__"

    def _plain(self, value: Any) -> Any:
        """Returns the plain list, dict or set that the candidate's object extends."""
        plain = self.request("plain", value)
        if type(plain) is not _container(value):
            self.reject("not the plain value")
        return plain

    def _result_of(
        self, objects: Sequence[Any], request: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Returns the result of a request to objects of the candidate.

        `request(*arguments)` sends the request. If one of the objects was computed from a value of
        the test, so is the result: it may only be another object.
        """
        has_seen = any(map(remote.has_seen, objects))
        try:
            result = request(*arguments)
        except Exception as error:
            if has_seen:
                self._doubts.append(f"{type(error).__name__} where a value of the test was shown")
            raise
        return self._seen(result) if has_seen else result

    def _seen(self, result: Any) -> Any:
        """Marks the result of an operator that was given a value of the test, and returns it.

        Raises NotComparable if it is plain data, which the candidate could have made to match.
        """
        if result is NotImplemented:
            return result
        if not remote.isinstance_of(result, remote.Remote):
            raise NotComparable("an operator of the candidate's class is given a value of the test")
        remote.mark_seen(result)
        return result

    # Requests of the candidate for objects of the test.

    def act(self, verb: str, arguments: Sequence[Any]) -> Any:
        """Performs a request for an object that the test passed to the candidate."""
        action = ACTIONS.get(verb)
        target = arguments[1 if verb == "op" else 0]
        if action is None or not self.is_lent(target):
            raise wire.WireError("not a request for an object of the test")
        try:
            return action(*arguments)
        except AssertionError:
            self._doubts.append("an assertion of the test fails where the candidate calls it")
            raise

    def is_named(self, value: Any) -> bool:
        """Returns whether `value` is a class or function of the standard library."""
        return names.is_library(value)

    def resolve(self, name: str) -> Any:
        """Returns a class or function of the closed list."""
        return names.known(name)

    def resolve_type(self, name: str) -> Any:
        """Returns a class of the closed list, or one that is only valid as a type."""
        return names.known_type(name)

    def check_lendable(self, value: Any) -> None:
        """Raises NotComparable for an object that `served` has no requests for."""
        has_methods = bool(methods_of(value))
        is_iterator = hasattr(type(value), "__next__") and not hasattr(value, "fileno")
        if not (may_be_called(value) or is_iterator or has_methods or is_open(value)):
            raise NotComparable(f"the test passes a {type(value).__name__} to the candidate")

    def operators_of(self, cls: type) -> Iterable[str]:
        """Returns the operators that the candidate may use on objects of `cls`."""
        if not defined_by_test(cls):
            served = ("__call__", "__iter__", "__next__")
            return [name for name in served if hasattr(cls, name)]
        return [name for name in remote.OPERATORS if operator_of(cls, name) is not None]


def _current(module: str, name: str) -> Any:
    """Returns the current value of a stream or function that tests replace."""
    return getattr(sys.modules[module], name, None)


def _short(text: Any) -> str:
    return str(text)[:2000]


def _name(value: Any) -> str:
    return f"an object of the candidate's class {type(value).__name__}"


def _container(value: Any) -> Any:
    """Returns the plain mutable type that the class of a proxy extends, or None."""
    return type.__getattribute__(type(value), "_codellama_base")


def _is_used_by_library() -> bool:
    """Returns whether code of the standard library, not of the test, uses a proxy.

    A method of Counter, for example, looks up its own keys, which are values of the test, in the
    other operand.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame and str(frame.f_globals.get("__name__")).startswith(__package__):
        frame = frame.f_back
    return frame is None or names.is_library_module(str(frame.f_globals.get("__name__")))


def _is_raised_by_test(error: BaseException, traceback: types.TracebackType | None) -> bool:
    """Returns whether a `raise` statement of the test raised the exception, and no assertion.

    A test may raise an exception inside of a `with` block to check that it is suppressed.
    """
    if traceback is None or isinstance(error, AssertionError):
        return False
    while traceback.tb_next:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    is_test = frame.f_globals.get("__name__") == TEST_MODULE
    return is_test and frame.f_code.co_code[traceback.tb_lasti] == _RAISE


def _is_caught(error: Exception) -> bool:
    """Returns whether an `except` clause caught this exception of the candidate.

    If none did, C code such as `map`, `zip` or `iter` took it for the end of an iteration, and the
    test skipped its remaining cases.
    """
    # The traceback begins at the outermost frame that the exception reached.
    last = error.__traceback__
    if last is None or str(last.tb_frame.f_globals.get("__name__")).startswith(__package__):
        return False
    code = last.tb_frame.f_code
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        # The handler of `async for` is no `except` clause.
        is_loop = code.co_code[entry.target] == _END_ASYNC_FOR
        if entry.start <= last.tb_lasti < entry.end and not is_loop:
            return True
    return False


def _is_among(item: Any, value: Any) -> bool:
    """Returns `item in value` from the items of the candidate's object, compared at this end."""
    if not any("__iter__" in vars(base) for base in type(value).__mro__):
        raise NotComparable(f"`in` with {_name(value)}")
    return any(item is other or item == other for other in value)


def _decoy(other: Any) -> Any:
    """Returns a random value of the type of `other`, which the candidate cannot predict."""
    number = int.from_bytes(os.urandom(7), "little")
    kind = type(other)
    if kind in (float, complex):
        return kind(number)
    if kind in (list, tuple, set, frozenset):
        return kind([number])
    if kind is dict:
        return {number: number}
    return str(number) if kind is str else number
