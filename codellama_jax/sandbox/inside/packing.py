"""Encodes the values of a message as nodes and pointers.

A message holds a list of nodes [tag, children]. A child is

- a leaf: None, bool, str, float, or an int of at most 62 bits;
- a pointer [i] to node i of this message;
- a pointer [-1 - i] to node i of the request that this message answers;
- [0, number]: an object of the receiver, by the number under which it was lent.

Pointers keep the structure of shared and cyclic values, and an argument that comes back is the
caller's own object.

A node of an immutable value follows the nodes of its children. A node of a mutable value may
precede them: the value is created empty and filled when every node exists. Decoding never
recurses, so a deeply nested message cannot exhaust the receiver's stack.
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

MAX_DEPTH = 100  # of nested immutable values
_LEAVES = {type(None), bool, int, float, str}
_FEW = 8  # up to this many values are packed one by one: faster than a check of all at once
_MAX_LEAF = 1 << 62


def _is_leaf(value: Any, kind: type) -> bool:
    """Returns whether JSON carries a value of the exact type `kind`, one of _LEAVES, unchanged."""
    if kind is int:
        return -_MAX_LEAF < value < _MAX_LEAF
    if kind is str:
        return value.isascii() or are_leaves((value,))
    # JSON has no NaN.
    return kind is not float or value == value


def are_leaves(items: Sequence[Any]) -> bool:
    """Returns whether JSON carries every item unchanged.

    Equivalent to `_is_leaf` of each item, but the loops run in C: arguments are often long lists
    of numbers.
    """
    kinds = set(map(type, items))
    if not kinds <= _LEAVES:
        return False
    if int in kinds:
        integers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
        if min(integers) <= -_MAX_LEAF or max(integers) >= _MAX_LEAF:
            return False
    # Only NaN differs from itself.
    if float in kinds and any(map(operator.ne, items, items)):
        return False
    if str in kinds:
        texts = items if len(kinds) == 1 else [item for item in items if type(item) is str]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            # JSON would join two lone surrogates into one character.
            return False
    return True


class Packer:
    """Encodes the values of one message.

    Attributes:
        nodes: [tag, children] of each packed value.
        values: the value of each node. This also keeps the values alive, so that their ids are
            not reused.
    """

    def __init__(self, pack_other: Callable[[Any, Packer], Any], known: Sequence[Any] = ()):
        """Starts an empty message.

        `pack_other(value, packer)` adds the node of a value whose type is not on the closed list
        and returns its index, or returns the pointer to an object of the receiver. `known` holds
        the values of the request that this message answers.
        """
        self.nodes: list[Any] = []
        self.values: list[Any] = []
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
            # An object of the receiver is already a pointer, [0, number].
            added = self._add(value, BY_TYPE.get(kind))
            return added if type(added) is list else [added]
        return [index]

    def pack_all(self, values: Sequence[Any]) -> list[Any]:
        """Packs every value of a list."""
        if len(values) > _FEW and are_leaves(values):
            return list(values)
        return [self.pack(value) for value in values]

    def add(self, value: Any, tag: str, children: list[Any], mutable: bool = False) -> int:
        """Adds a node and returns its index.

        Args:
            value: the value of the node.
            tag: its kind.
            children: the parts of the value, not yet packed.
            mutable: packs the children after the value's own node, so that they may contain it.

        Raises NotComparable if the value is nested too deep, or is a tuple that contains itself.
        """
        if len(self._open) > MAX_DEPTH:
            raise NotComparable(f"a value nested deeper than {MAX_DEPTH}")
        if id(value) in self._open and not mutable:
            raise NotComparable("a tuple that holds itself")
        # The node of a mutable value is appended first: a child that points back to it is then
        # in the index, which ends the recursion.
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
        """Packs the current children of a mutable value."""
        return self.pack_all(BY_TYPE[type(value)].take(value))

    def _add(self, value: Any, kind: Kind | None) -> Any:
        return self._pack_other(value, self) if kind is None else self.add_as(value, kind)

    def add_as(self, value: Any, kind: Kind) -> int:
        """Adds the node of a value as `kind`, which is that of its type or of a base of it."""
        return self.add(value, kind.tag, kind.take(value), kind.fill is not None)

    def _append(self, value: Any, node: list[Any]) -> int:
        index = len(self.nodes)
        self.nodes.append(node)
        self.values.append(value)
        self._index[id(value)] = index
        return index


class Unpacker:
    """Decodes the values of one message. Raises WireError for input that Packer does not write.

    The message is hostile. Every check uses exact types, before a value is used.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        unpack_other: Callable[[str, list[Any]], Any],
        known: Sequence[Any] = (),
    ):
        """Decodes `nodes`, a list of [tag, children].

        `unpack_other(tag, children)` returns the value of a node whose tag is not on the closed
        list; the tag "home" stands for an object that this end lent. `known` holds the values of
        the request that this message answers.
        """
        self.values: list[Any] = []
        # Depth of each immutable value, 0 for others: Python hashes and frees them recursively.
        self._depths: list[int] = []
        self._known = known
        self._unpack_other = unpack_other
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
        """Returns the decoded parts of an immutable value."""
        parts = self.get_all(children)
        # A proxy among the parts of a number or a date would run code of the candidate while the
        # value is made.
        if kind.type not in HOLDING and not PLAIN.issuperset(map(type, parts)):
            raise WireError(f"not the parts of a {kind.tag}")
        return parts

    def _depth(self, children: list[Any]) -> int:
        """Returns how deeply an immutable value with these children is nested."""
        if set(map(type, children)) <= _LEAVES:
            return 0
        depth = 1
        for child in children:
            # A pointer to a value of the request is negative: this end made that value.
            if type(child) is list and len(child) == 1 and child[0] >= 0:
                depth = max(depth, 1 + self._depths[child[0]])
        if depth > MAX_DEPTH + 1:
            raise WireError(f"a value nested deeper than {MAX_DEPTH}")
        return depth

    def mutate(self, value: Any, children: list[Any]) -> None:
        """Sets the children of a mutable value of the request to those at the other end."""
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
    """Returns (index, children) of each mutable value, to detect later changes."""
    states = []
    for index, value in enumerate(values):
        kind = BY_TYPE.get(type(value))
        if kind and kind.fill:
            states.append((index, kind.take(value)))
    return states


def changed(value: Any, before: list[Any]) -> bool:
    """Returns whether the children of a mutable value differ from `before`."""
    now = BY_TYPE[type(value)].take(value)
    if type(value) in (bytearray, array.array):
        return now != before
    # By identity: comparing with == would run code of the candidate or of the test.
    return len(now) != len(before) or not all(map(operator.is_, now, before))
