"""Values cross the pipe unchanged; forged messages of a hostile end raise WireError."""

import array
import collections
import datetime
import decimal
import fractions
import json
import math
import os
import types
import uuid

import hypothesis
import hypothesis.strategies as st
import pytest

from codellama_jax.sandbox.inside import packing, values, wire


def no_other(*_):
    raise wire.WireError("not on the list")


def across(value, known=()):
    """Returns the value as the other end gets it."""
    packer = packing.Packer(no_other, known)
    pointer = packer.pack(value)
    nodes, pointer = json.loads(json.dumps([packer.nodes, pointer]))
    return packing.Unpacker(nodes, no_other, known).get(pointer)


def unfold(value):
    """Returns types, order and content of a nested value: True is not 1, -0.0 is not 0.0."""
    kind = type(value)
    if kind in (list, tuple, collections.deque):
        return kind, [unfold(item) for item in value]
    if isinstance(value, dict):
        return kind, [(unfold(key), unfold(item)) for key, item in value.items()]
    if kind in (set, frozenset):
        return kind, sorted(map(repr, value))
    return kind, repr(value)


surrogates = st.text(st.characters(blacklist_categories=()))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    surrogates,
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.times(),
    st.uuids(),
    st.builds(range, st.integers(), st.integers()),
)
keys = st.one_of(st.booleans(), st.integers(), surrogates, st.dates(), st.tuples(st.integers()))
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(collections.deque),
        st.dictionaries(keys, inner),
        st.dictionaries(keys, inner).map(collections.OrderedDict),
        st.sets(keys),
        st.frozensets(keys),
    ),
    max_leaves=20,
)


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(nested)
def test_values_arrive_as_they_left(value):
    assert unfold(across(value)) == unfold(value)


EXAMPLES = [
    10**6000,
    -(2**70),
    math.inf,
    "\ud83d" + "\ude00",
    ["\ud83d", "\ude00"],
    [True, 1, 1.0, None, "1"],
    {True: 1, 2: True, "true": False},
    bytearray(b"x"),
    array.array("d", [1.5, -2.0]),
    collections.Counter("aab"),
    collections.defaultdict(None, {1: 2}),
    collections.deque([1, 2], maxlen=2),
    types.SimpleNamespace(a=1),
    types.MappingProxyType({1: 2}),
    decimal.Decimal("1.10"),
    decimal.Decimal("-0E+3"),
    decimal.Decimal("-Infinity"),
    fractions.Fraction(-1, 3),
    datetime.datetime(
        2024, 1, 1, 2, fold=1, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "x")
    ),
    uuid.UUID(int=7),
    range(5, 1, -2),
    slice(1, None, 2),
    memoryview(b"abc"),
    ...,
    NotImplemented,
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_type_of_the_list_comes_back(value):
    back = across(value)
    assert type(back) is type(value)
    assert back == value
    assert type(value) in (int, memoryview) or repr(back) == repr(value)


def test_views_of_a_dict_come_back():
    data = {"b": 1, "a": [2]}
    assert across(data.keys()) == data.keys()
    assert list(across(data.values())) == [1, [2]]
    assert list(across({"b": 1}.items())) == [("b", 1)]


def test_shared_and_cyclic_values_keep_their_shape():
    row = [1]
    first, second = across([row, row])
    assert first is second
    ring = [0]
    ring.append((ring,))
    back = across(ring)
    assert back[1][0] is back
    assert across([row, (row,)], known=[row])[0] is row


def test_a_value_that_would_take_too_long_is_not_comparable():
    deep: list = []
    for _ in range(2000):
        deep = [deep]
    ring: list = []
    holder = (ring,)
    ring.append(holder)
    for value in (
        1 << (values.MAX_BITS + 1),
        decimal.Decimal("1E+999999999"),
        fractions.Fraction(1, 10**100_000),
        deep,
        holder,
    ):
        with pytest.raises(values.NotComparable):
            across(value)
    values.NotComparable.reasons.clear()


FORGED = {
    "no tag": [[5, []]],
    "an unknown tag": [["eval", ["1"]]],
    "children that are none": [["list", "abc"]],
    "a value that is no child": [["list", [{"a": 1}]]],
    "a pointer ahead of a tuple": [["tuple", [[1]]], ["tuple", []]],
    "a pointer that is no number": [["tuple", [["0"]]]],
    "a pointer to nowhere": [["list", [[9]]]],
    "a pointer past the request": [["list", [[-9]]]],
    "true as a pointer": [["list", []], ["list", [[True]]]],
    "an unhashable key": [["list", []], ["dict", [[0], 1]]],
    "half a pair": [["dict", [1]]],
    "an unhashable item": [["list", []], ["frozenset", [[0]]]],
    "an integer that is none": [["int", ["zz"]]],
    "an integer that is too long": [["int", ["0x" + "f" * (values.MAX_BITS // 2)]]],
    "an integer from a float": [["int", [1.5]]],
    "a huge exponent": [["Decimal", [0, "1", 10**9]]],
    "digits that are none": [["Decimal", [0, "1e5", 0]]],
    "a decimal sign that is none": [["Decimal", [7, "1", 0]]],
    "a fraction by zero": [["Fraction", [1, 0]]],
    "a fraction of text": [["Fraction", ["1", "3"]]],
    "a range without a step": [["range", [0, 1, 0]]],
    "bytes that are none": [["bytes", ["zz"]]],
    "an array of objects": [["array", ["O", ""]]],
    "a date that is none": [["date", [2024, 13, 1]]],
    "a uuid that is too long": [["UUID", [2**200]]],
    "a zone that is none": [["timezone", ["x"]]],
    "a name in a namespace that is no text": [["namespace", [1, 2]]],
    "a memoryview of nothing": [["memoryview", [None]]],
}
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, wire.WireError)


@pytest.mark.parametrize("name", FORGED)
def test_forged_nodes_are_refused(name):
    with pytest.raises(MALFORMED):
        packing.Unpacker(FORGED[name], no_other)


def pipe_with(data):
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little"),
        (5).to_bytes(8, "little") + b"[1",
        (3).to_bytes(8, "little") + b"[1,",
        (3000).to_bytes(8, "little") + b"[" + b"9" * 2998 + b"]",
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (2).to_bytes(8, "little") + b"\xff\xfe",
    ],
)
def test_a_bad_frame_is_refused(data):
    with pytest.raises(wire.WireError):
        wire.receive(pipe_with(data))


def test_a_message_over_the_limit_is_refused_before_it_is_sent():
    reader, writer = os.pipe()
    with pytest.raises(wire.TooLargeError, match="exceeds the limit of 67108864 bytes"):
        wire.send(writer, "x" * (wire.MAX_BYTES + 1))
    os.close(writer)
    assert os.read(reader, 1) == b""
