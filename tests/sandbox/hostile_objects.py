"""Hostile objects: each satisfies the test without computing the expected value.

The right answer of `add(2, 3)` is 5. Each entry is (candidate, test); plain `exec` in one process
passes every one of them.
"""

_ZEROS = """
class Zeros:
    def __sub__(self, other): return Zeros()
    {0}
def add(a, b): return Zeros()
"""
_CLOSE = "assert all(abs(d) < 1e-6 for d in add(2, 3) - 5)"
_WITH = """
class Context:
    {0}
    def __enter__(self): return self
    def __exit__(self, *error): return True
def add(a, b): return Context()
"""
_COUNTER = """
from collections import Counter
class Pretender(Counter):
    def __getitem__(self, key): return {0}
    def __iter__(self): return iter(())
def add(a, b): return Pretender()
"""
OBJECTS = {
    "items of a difference": (_ZEROS.format("def __iter__(self): return iter([0.0])"), _CLOSE),
    "a difference that is an iterator": (
        _ZEROS.format(
            "n = 2\n    def __iter__(self): return self\n    def __next__(self):\n"
            "        self.n -= 1\n        if not self.n: raise StopIteration\n        return 0"
        ),
        _CLOSE,
    ),
    "a difference without items": (
        _ZEROS.format("def __getitem__(self, index): raise IndexError"),
        _CLOSE,
    ),
    "an exception ends map": (
        """
class Equal:
    calls = 0
    def __eq__(self, other):
        self.calls += 1
        if self.calls > 1: raise StopIteration
        return NotImplemented
def add(a, b): return [Equal()]
""",
        """
def same(a, b):
    if a == b: return True
    return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
assert same(add(2, 3), [5])
""",
    ),
    "an exception ends zip": (
        "class Stop(StopIteration): pass\ndef add(a, b): raise Stop",
        "for x, y in zip(map(add, [1, 2], [3, 4]), [4, 6]): assert x == y",
    ),
    "an iteration by call": (
        "def add(a=0, b=0): raise StopIteration",
        "assert all(x == 5 for x in iter(add, None))",
    ),
    "a counter of every key": (
        _COUNTER.format("1"),
        "from collections import Counter\nassert Counter('ab') == add(2, 3)",
    ),
    "a counter of very many": (
        _COUNTER.format("99"),
        "from collections import Counter\nassert not Counter('ab') - add(2, 3)",
    ),
    "another number each time": (
        """
class Number:
    answers = [1.0, -0.5, 0.0]
    def __float__(self): return self.answers.pop(0)
def add(a, b): return Number()
""",
        """
import math
def poly(xs, x): return sum(c * math.pow(x, i) for i, c in enumerate(xs))
assert abs(poly([1.0, 2.0, 3.0], add(2, 3))) < 1e-4
""",
    ),
    "a class in the place of a module": (
        "class sys:\n    getsizeof = staticmethod(lambda value: 7)\ndef add(x): return 7",
        "assert add((1,)) == sys.getsizeof((1,))",
    ),
    "a namespace in the place of a module": (
        "import types\nmath = types.SimpleNamespace(isclose=lambda a, b: True)\n"
        "def add(a, b): return 7",
        "assert math.isclose(add(2, 3), 5)",
    ),
    "an exception ends an asynchronous iteration": (
        "def add(a, b): raise StopAsyncIteration",
        """
import asyncio
class Values:
    def __aiter__(self): return self
    async def __anext__(self): return add(2, 3)
async def main():
    async for value in Values(): assert value == 5
asyncio.run(main())
""",
    ),
    "an exception ends a test's sequence": (
        "def add(a): raise IndexError",
        """
class Values:
    def __getitem__(self, index): return add(index)
for value in Values(): assert value == 5
""",
    ),
    "an exception hides an attribute": (
        "def add(a): raise AttributeError",
        """
class Value:
    value = property(lambda self: add(1))
    def __getattr__(self, name): return 5
assert Value().value == 5
""",
    ),
    "skips the test": (
        "import unittest\ndef add(a, b): raise unittest.SkipTest",
        """
import unittest
class Test(unittest.TestCase):
    def test_add(self): self.assertEqual(add(2, 3), 5)
result = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(Test).run(result)
assert result.wasSuccessful()
""",
    ),
    "an operator changes the expected value": (
        """
class Empty:
    def __sub__(self, other):
        other[0].clear()
        return NotImplemented
    def __iter__(self): return iter([[]])
def add(a, b): return Empty()
""",
        """
expected, value = [[5]], add(2, 3)
try: value - expected
except TypeError: pass
assert list(value) == expected
""",
    ),
    "replaces a function of the test's object": (
        "def add(item): item.same = lambda a, b: True",
        """
class Item:
    def __init__(self): self.same = lambda a, b: a == b
item = Item()
add(item)
assert item.same(1, 2)
""",
    ),
    "suppresses an assertion": (
        _WITH.format("value = 4"),
        "with add(2, 3) as context:\n    assert context.value == 5",
    ),
    "suppresses its own exception": (
        _WITH.format("@property\n    def value(self): raise ValueError"),
        "with add(2, 3) as context:\n    assert context.value == 5",
    ),
    "suppresses in a generator": (
        """
import contextlib
@contextlib.contextmanager
def add(a, b):
    try: yield 4
    except BaseException: pass
""",
        "with add(2, 3) as value:\n    assert value == 5",
    ),
    "suppresses an assertion of a function": (
        "def add(function):\n    try: function(4)\n    except AssertionError: pass",
        "def expect(value): assert value == 5\nadd(expect)",
    ),
}
