"""Messages of values: nodes and pointers. Decoding never recurses.

A message holds a list of nodes [tag, children]. A child is a leaf (None, bool, str, float or int of
62 bits), a pointer [i] to node i of this message, a pointer [-1 - i] to node i of the request that
it answers, or [0, number] for an object of the receiver. So shared and cyclic values keep their
shape, and an argument that comes back is the caller's own object.

A node of an immutable value comes after its children. A node of a mutable value may come before
them: it is created empty and filled when every node exists.
"""

from __future__ import annotations

import array
import operator
from collections.abc import Callable, Sequence
from typing import Any

from codellama_jax.sandbox.inside.values import (
    BY_TAG,
    BY_TYPE,
    HOLDING,
    PLAIN,
    Kind,
    NotComparable,
    base_kind,
    text,
)
from codellama_jax.sandbox.inside.wire import WireError

MAX_DEPTH = 100
_LEAVES = {type(None), bool, int, float, str}
_FEW = 8
_MAX_LEAF = 1 << 62


def _is_leaf(value: Any, kind: type) -> bool:
    if kind is int:
        return -_MAX_LEAF < value < _MAX_LEAF
    if kind is str:
        return value.isascii() or are_leaves((value,))
    return kind is not float or value == value  # not NaN


def are_leaves(items: Sequence[Any]) -> bool:
    """Returns whether JSON carries every item as it is, without a look at each in Python."""
    kinds = set(map(type, items))
    if not kinds <= _LEAVES:
        return False
    if int in kinds:
        integers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
        if min(integers) <= -_MAX_LEAF or max(integers) >= _MAX_LEAF:
            return False
    if float in kinds and any(map(operator.ne, items, items)):  # NaN
        return False
    if str in kinds:
        texts = items if len(kinds) == 1 else [item for item in items if type(item) is str]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:  # JSON would join two lone surrogates into one character
            return False
    return True


class Packer:
    """Writes the values of one message as nodes.

    `pack_other(value, packer)` adds the node of a value that is not on the list and returns its
    index, or returns the pointer to an object of the receiver. `known` are the values of the
    request that this message answers.
    """

    def __init__(self, pack_other: Callable[[Any, Packer], Any], known: Sequence[Any] = ()):
        self.nodes: list[Any] = []
        self.values: list[Any] = []  # of the nodes; this also keeps their ids from being reused
        self._pack_other = pack_other
        self._index = {id(value): -1 - i for i, value in enumerate(known)}
        self._open: set[int] = set()  # immutable values whose children are being packed

    def pack(self, value: Any) -> Any:
        """Returns a leaf, or a pointer to the node of the value."""
        kind = type(value)
        if kind in _LEAVES and _is_leaf(value, kind):
            return value
        index = self._index.get(id(value))
        if index is None:
            added = self._add(value, BY_TYPE.get(kind))
            return added if type(added) is list else [added]
        return [index]

    def pack_all(self, values: Sequence[Any]) -> list[Any]:
        """Packs every value of a list."""
        if len(values) > _FEW and are_leaves(values):
            return list(values)
        return [self.pack(value) for value in values]

    def add(self, value: Any, tag: str, children: list[Any], mutable: bool = False) -> int:
        """Adds a node. The children of a mutable value are packed after it, else before."""
        if len(self._open) > MAX_DEPTH:
            raise NotComparable(f"a value nested deeper than {MAX_DEPTH}")
        if id(value) in self._open and not mutable:
            raise NotComparable("a tuple that holds itself")
        self._open.add(id(value))
        if mutable:
            index = self._append(value, [tag, []])
            self.nodes[index][1] = self.pack_all(children)
        else:
            packed = self.pack_all(children)
            index = self._append(value, [tag, packed])
        self._open.discard(id(value))
        return index

    def state(self, value: Any) -> list[Any]:
        """Packs the children that a mutable value has now."""
        return self.pack_all(BY_TYPE[type(value)].take(value))

    def _add(self, value: Any, kind: Kind | None) -> Any:
        return self._pack_other(value, self) if kind is None else self.add_as(value, kind)

    def add_as(self, value: Any, kind: Kind) -> int:
        """Adds the node of a value of this kind, or of a subclass as the kind's own type."""
        return self.add(value, kind.tag, kind.take(value), kind.fill is not None)

    def _append(self, value: Any, node: list[Any]) -> int:
        index = len(self.nodes)
        self.nodes.append(node)
        self.values.append(value)
        self._index[id(value)] = index
        return index


class Unpacker:
    """Rebuilds the values of one message. Raises WireError for what Packer does not write.

    `unpack_other(tag, children)` rebuilds the node of a value that is not on the list, "home" the
    one that this end has lent.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        unpack_other: Callable[[str, list[Any]], Any],
        known: Sequence[Any] = (),
    ):
        self.values: list[Any] = []
        self._depths: list[
            int
        ] = []  # of immutable values: Python hashes and frees them recursively
        self._known, self._unpack_other = known, unpack_other
        unfilled = []
        for tag, children in nodes:
            kind = BY_TAG.get(text(tag))
            if type(children) is not list:
                raise WireError("not a node")
            depth = 0
            if kind is None:
                depth = self._depth(children)
                value = unpack_other(tag, self.get_all(children))
            elif kind.fill:
                value = kind.make(children)
                unfilled.append((kind.fill, value, children))
            else:
                depth = self._depth(children)
                value = kind.make(self._parts(kind, children))
            self.values.append(value)
            self._depths.append(depth)
        for fill, value, children in unfilled:
            fill(value, self.get_all(children))

    def get(self, child: Any) -> Any:
        """Returns the value of a leaf or pointer."""
        if type(child) is not list:
            return self._leaf(child)
        if len(child) == 2:
            return self._unpack_other("home", child[1:])
        [index] = child
        if type(index) is not int:
            raise WireError("not a pointer")
        return self.values[index] if index >= 0 else self._known[-1 - index]

    def get_all(self, children: list[Any]) -> list[Any]:
        """Returns the values of a list of leaves and pointers."""
        if set(map(type, children)) <= _LEAVES:
            return children
        return [self.get(child) for child in children]

    def _parts(self, kind: Kind, children: list[Any]) -> list[Any]:
        parts = self.get_all(children)
        if kind.type not in HOLDING and not PLAIN.issuperset(map(type, parts)):
            raise WireError(f"not the parts of a {kind.tag}")
        return parts

    def _depth(self, children: list[Any]) -> int:
        if set(map(type, children)) <= _LEAVES:
            return 0
        pointers = [child[0] for child in children if type(child) is list and len(child) == 1]
        depth = 1 + max((self._depths[index] for index in pointers if index >= 0), default=0)
        if depth > MAX_DEPTH + 1:
            raise WireError(f"a value nested deeper than {MAX_DEPTH}")
        return depth

    def mutate(self, value: Any, children: list[Any]) -> None:
        """Gives a mutable value of the request the children that it has at the other end."""
        kind = BY_TYPE.get(type(value)) or base_kind(type(value))
        if kind is None or kind.fill is None:
            raise WireError("not a mutable value")
        kind.fill(value, self.get_all(children))

    @staticmethod
    def _leaf(value: Any) -> Any:
        if type(value) not in _LEAVES:
            raise WireError("not a value")
        return value


def snapshot(values: Sequence[Any]) -> list[tuple[int, list[Any]]]:
    """Returns (index, children) of each mutable value, to find what a call changes."""
    found = []
    for index, value in enumerate(values):
        kind = BY_TYPE.get(type(value))
        if kind and kind.fill:
            found.append((index, kind.take(value)))
    return found


def changed(value: Any, before: list[Any]) -> bool:
    """Returns whether a mutable value has other children than `before`."""
    now = BY_TYPE[type(value)].take(value)
    if type(value) in (bytearray, array.array):
        return now != before
    return len(now) != len(before) or not all(map(operator.is_, now, before))
