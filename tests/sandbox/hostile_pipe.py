"""Hostile candidates for each way across the pipe. The right answer is that of hostile.TEST."""

# `end` returns the candidate's end of the pipe, which it can find in its memory. `raw` writes a
# message to every pipe.
END = """
import gc, os, stat, struct, json
def end():
    return next(o for o in gc.get_objects() if type(o).__name__ == "Candidate")
def raw(message):
    data = json.dumps(message).encode()
    for fd in range(3, 100):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, struct.pack("<Q", len(data)) + data)
        except OSError:
            pass
"""

# Nodes of raw answers to the call of add(2, 3). None of them may pass.
NODES = {
    "a type that runs": [["eval", ["1"]]],
    "a method as a kind": [["other", []]],
    "a name that runs": [["name", ["builtins:eval"]]],
    "a name that makes classes": [["name", ["builtins:type"]]],
    "a name of a module": [["name", ["os:system"]]],
    "a name with a path": [["name", ["builtins:str.format"]]],
    "an exception of a module that is not loaded": [["name", ["antigravity:Error"]]],
    "a loaned object that is none": [["home", [1]]],
    "a class without a definition": [["class", [7]]],
    "a class that extends int": [
        ["tuple", []],
        ["class", [7, "A", "object", "builtins:int", [0], "", False, None]],
    ],
    "a held class of a list": [
        ["tuple", []],
        ["class", [7, "A", "held", "builtins:list", [0], "", False, None]],
    ],
    "an exception that is no exception": [
        ["tuple", []],
        ["class", [7, "A", "exception", "builtins:int", [0], "", False, None]],
    ],
    "parents that are no classes": [
        ["tuple", [1]],
        ["class", [7, "A", "object", None, [0], "", False, None]],
    ],
    "operators that are none": [
        ["tuple", []],
        ["class", [7, "A", "object", None, [0], "__class__ __getattribute__ __eq__", False, None]],
        ["object", [[1], 8]],
    ],
    "an object of a plain class": [["name", ["builtins:int"]], ["object", [[0], 8]]],
    "an exception with other arguments": [
        ["name", ["builtins:ValueError"]],
        ["exception", [[0], "x", "x", 8, None]],
    ],
    "an exception class that is none": [
        ["name", ["builtins:int"]],
        ["tuple", []],
        ["exception", [[0], [1], "x", 8, None]],
    ],
    "a member of nothing": [["member", [None, "x", None, 3]]],
    "a released name": [["home", ["x"]]],
    "a class with a long name": [
        ["tuple", []],
        ["class", [7, "A" * 1000, "object", None, [0], "", False, None]],
    ],
    "a class with more operators than text": [
        ["tuple", []],
        ["class", [7, "A", "object", None, [0], ["__eq__"], False, None]],
    ],
    "a tuple nested a thousand deep": [["tuple", []]] + [["tuple", [[i]]] for i in range(1_000)],
    "a slice nested a thousand deep": [["slice", [1, 2, 3]]]
    + [["slice", [None, [i], None]] for i in range(1_000)],
    "causes without end": [["name", ["builtins:ValueError"]], ["tuple", []]]
    + [["exception", [[0], [1], "x", i, [i + 1] if i else None]] for i in range(1_000)],
    "a key that takes for ever to hash": [["tuple", [1]]]
    + [["tuple", [[i], [i]]] for i in range(60)]
    + [["frozenset", [[60]]]],
    "a batch that is none": [["tuple", [1, 2, 3]]],
    "a billion laughs": [["tuple", [1]]] + [["tuple", [[i], [i]]] for i in range(60)],
}


# The proxy of an object that has every operator, as a part of a plain value.
_OPERATORS = "__eq__ __hash__ __index__ __float__ __int__ __len__ __getitem__ __iter__ __next__"
_PROXY = [
    ["tuple", []],
    ["class", [7, "A", "object", None, [0], _OPERATORS, False, None]],
    ["object", [[1], 8]],
]
for _tag, _parts in {
    "int": [[2]],
    "complex": [[2], 1.0],
    "nan": [[2]],
    "Decimal": [[2], "1", 0],
    "Decimal ": [0, [2], 0],
    "Fraction": [[2], 1],
    "range": [[2], 5, 1],
    "date": [[2], 1, 1],
    "timedelta": [[2], 0, 0],
    "UUID": [[2]],
    "bytes": [[2]],
    "path": [[2]],
    "memoryview": [[2]],
    "name": [[2]],
    "home": [[2]],
    "member": [[1], [2], None, 8],
    "held": [[1], 5, [2]],
    "class": [[2]],
    "class ": [9, "B", "object", None, [2], "", False, None],
    "class  ": [9, "B", "object", None, [0], [2], False, None],
    "class   ": [9, "B", "object", [2], [0], "", False, [2]],
}.items():
    NODES[f"a proxy as a part of {_tag}"] = [*_PROXY, [_tag.strip(), _parts]]


def answering(nodes: list) -> str:
    """Returns a candidate that answers with these nodes; the last one is the result."""
    message = ["answer", [len(nodes) - 1], [], nodes]
    return END + f"def add(a, b):\n    raw({message!r})\n    return 0\n"


MESSAGES = {
    "changes of a missing value": ["answer", 5, [[0, [1]], [99, [1]]], []],
    "changes of an immutable value": ["answer", 5, [[-1, [1]]], []],
    "a refusal of no kind": ["refuse", "passed", "x"],
    "a verdict": ["passed"],
    "a verb that is none": ["request", "load", ["1"], [], []],
    "a refusal that is no text": ["refuse", 5, ["x"]],
    "a truncated refusal": ["refuse", "too_large"],
    "a request for nothing": ["request", "call", [], [], []],
    "a request of the judge's own": ["request", "get", [1, "verdict"], [], []],
    "released objects that are none": ["request", "get", [1], [], [[1]]],
    "an exception that is a value": ["raise", 5, [], []],
    "not a list": {"answer": 5},
    "empty": [],
}


def sending(message: object) -> str:
    """Returns a candidate that sends this message instead of its answer."""
    return END + f"def add(a, b):\n    raw({message!r})\n    return 0\n"


# Candidates that get functions and objects of the test, and try to reach more.
CALLBACK_TEST = """
SECRET = "MARK"
class Item:
    limit = 3
    def __init__(self): self.value = 5
    def double(self): return self.value * 2
    def __eq__(self, other): return isinstance(other, Item) and other.value == self.value
def check(candidate):
    item = Item()
    apply = lambda f, *args: f(*args)
    def plus(x: 42 = 42): return x + 1
    plus.expected = 42
    result = candidate(plus, item, apply, Item)
    assert result == 42 and item.double() == 10 and Item.limit == 3 and SECRET == "MARK"
"""
REACHES = {
    "globals": "return fn.__globals__['SECRET']",
    "code": "fn.__code__ = (lambda x: 42).__code__\n    return 42",
    "closure": "return fn.__closure__",
    "builtins": "return fn.__builtins__['eval']('42')",
    "namespace": "return fn.__dict__['expected']",
    "annotations": "return fn.__annotations__['x']",
    "defaults": "return fn.__defaults__[0]",
    "class": "end().request('get', item, '__class__')\n    return 42",
    "dict": "end().request('get', item, '__dict__')['value'] = 1\n    return item.double()",
    "subclasses": "return end().request('get', cls, '__subclasses__')()",
    "init globals": (
        "init = end().request('get', cls, '__init__')\n"
        "    return end().request('get', init, '__globals__')"
    ),
    "bases": "return cls.__bases__",
    "a method is replaced": "item.double = lambda: 10\n    item.value = 0\n    return 42",
    "a class attribute is replaced": "cls.limit = 9\n    return 42",
    "a class method is replaced": "cls.double = lambda self: 10\n    item.value = 0\n    return 42",
    "an operator by name": "return end().request('op', '__reduce_ex__', item, 2)",
    "an operator of object": "return end().request('op', '__getattribute__', item, '__class__')",
    "an operator that sets": "return end().request('op', '__setattr__', item, 'value', 1)",
    "next of a function": "return end().request('next', fn, 1)",
    "very many items": "return end().request('next', fn, 10**9)",
    "a call of the type": (
        "cls = end().request('get', fn, '__class__')\n    return end().request('call', cls, None)"
    ),
    "type through the test's own function": (
        "return apply(type, 'E', (), {'__eq__': lambda *a: True})()"
    ),
    # `eval` runs in the candidate's process: these pass only if it could run in that of the test.
    "eval finds a name of the test": "return 42 if apply(eval, 'SECRET') == 'MARK' else 0",
    "eval in another process": (
        "return 42 if apply(eval, '__import__(\"os\").getpid()') != os.getpid() else 0"
    ),
    "exec in the test's names": "apply(exec, 'SECRET = 1', fn.__globals__)\n    return 42",
    "getattr through the test's own function": "return apply(getattr, item, '__class__')",
    "a verb": "return end().request('load', 'SECRET = 1')",
    "format": "return apply(str.format, '{0.__class__}', item)",
    "a loan that is none": "return end()._answer(['answer', [0, 1], [], []], [])",
    "endless calls": "while True: fn(1)",
    "calls within calls": "return apply(lambda: add(fn, item, apply, cls))",
}


def reaching(body: str) -> str:
    """Returns a candidate that tries to reach more than the test passed to it."""
    return END + f"def add(fn, item, apply, cls):\n    {body}\n"


# Values that never end.
ENDLESS = {
    "a generator": "def add(a, b):\n    while True: yield 5",
    "an iterator that never returns": """
class Never:
    def __iter__(self): return self
    def __next__(self):
        while True: pass
def add(a, b): return Never()
""",
    "a length": """
class A:
    def __len__(self):
        while True: pass
def add(a, b): return A()
""",
    "a hash": """
class A:
    def __hash__(self):
        while True: pass
def add(a, b): return A()
""",
}
ENDLESS_TEST = """
def check(candidate):
    value = candidate(2, 3)
    assert list(value) == [5] if hasattr(value, "__iter__") else (hash(value), len(value))
"""
# Values that claim to be equal to others.
PRETENDERS = {
    "equal unless it is a decoy": """
class Equal:
    def __eq__(self, other): return other in (5, 4.0, [1, 2])
def add(a, b): return Equal()
""",
    "arithmetic": """
class Zero:
    def __sub__(self, other): return 0.0
    def __rsub__(self, other): return 0.0
    def __abs__(self): return 0.0
    def __eq__(self, other): return NotImplemented
def add(a, b): return 5 if (a, b) == (2, 3) else Zero()
""",
    "a list that agrees with everything": """
class Pretender(list):
    def __eq__(self, other): return True
    def __contains__(self, other): return True
    __ne__ = __lt__ = lambda self, other: False
def add(a, b): return a + b if type(a) in (int, float) and (a, b) != (2, 3) else Pretender()
""",
    "a string that agrees with everything": """
class Pretender(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def add(a, b): return Pretender("x")
""",
    "a set with one hash": """
class One:
    def __hash__(self): return 0
    def __eq__(self, other): return True
def add(a, b): return {One()}
""",
    "an enumeration": """
import enum
class E(enum.IntEnum):
    A = 1
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return E.A
""",
    "a class of the test's name": """
class check:
    def __init__(self, candidate): pass
candidate = check
def add(a, b): return check
""",
}

# Attacks on particular tests: (candidate, test, allowed statuses).
AIMED = {
    "arithmetic in two steps": (
        """
class Zero:
    def __sub__(self, other): return 0.0 if isinstance(other, Zero) else Zero()
def add(a, b): return Zero()
""",
        "assert add(2, 3) - (add(2, 3) - 4.0) == 0.0",
        ("not_comparable",),
    ),
    "a list that ignores added items": (
        """
class Pretender(list):
    def __iadd__(self, other): return self
def add(a, b): return Pretender()
""",
        "x = add(2, 3)\nx += [5]\nassert x == [5]",
        ("not_comparable",),
    ),
    "a batch of items without end": (
        END
        + """
class Items:
    def __iter__(self): return self
    def __next__(self): return 5
import sys
sys.modules[type(end()).__module__]._ACTIONS["next"] = lambda iterator, count: (iterator, None)
def add(a, b): return Items()
""",
        "try:\n    list(add(2, 3))\nexcept Exception:\n    pass",
        ("error",),
    ),
    "a batch that is too long": (
        END
        + """
class Items:
    def __iter__(self): return self
    def __next__(self): return 5
import sys
sys.modules[type(end()).__module__]._ACTIONS["next"] = lambda iterator, count: ([5] * 999, None)
def add(a, b): return Items()
""",
        "try:\n    next(add(2, 3))\nexcept Exception:\n    pass",
        ("error",),
    ),
    "a plain value of another type": (
        END
        + """
class Pretender(list): pass
import sys
sys.modules[type(end()).__module__]._ACTIONS["plain"] = lambda value: 5
def add(a, b): return Pretender()
""",
        "try:\n    add(2, 3) == [5]\nexcept Exception:\n    pass",
        ("error",),
    ),
    "a name that is no pair": (
        END + "type(end())._global = lambda self, name: 5\n",
        "try:\n    add\nexcept Exception:\n    pass",
        ("error",),
    ),
    "a test's function on the candidate's file": (
        "def add(read): return list(read('/proc/self/maps'))",
        "from functools import partial\nassert add(partial(open, mode='r'))",
        ("not_comparable",),
    ),
    "the judge's own output": (
        "def add(write): return write('x')",
        "import sys\nassert add(sys.stdout.write)",
        ("not_comparable",),
    ),
    "a call with a proxy for keywords": (
        END
        + """
class Keys:
    def keys(self): return ["x"]
    def __getitem__(self, key): return 5
def add(fn): return end().request("call", fn, Keys())
""",
        "assert add(lambda x=5: x) == 5",
        ("error",),
    ),
    "an attribute named by a proxy": (
        END
        + """
class Name:
    def startswith(self, text): return False
def add(item): return end().request("get", item, Name())
""",
        "class Item: pass\nassert add(Item()) is None",
        ("error",),
    ),
}
for _module in ("antigravity", "unittest.__main__", "idlelib.idle", "turtle", "numpy", "posix.x"):
    AIMED[f"the module {_module}"] = (
        f"import types\nhelper = types.ModuleType({_module!r})\nhelper.x = 1\n",
        "assert helper.x == 1",
        ("not_comparable", "error"),
    )
HANDED = """
import functools, io, operator, random, re
seen = []
assert add(seen.append, 3) is None and seen == [3]
assert add(functools.partial(lambda a, b: a + b, 1), 2) == 3
assert add(functools.partial(pow, 2), 3) == 8
assert add(re.compile("a").match, "b") is None and add("{}!".format, 1) == "1!"
assert add(random.Random(1).randint, 5, 5) == 5 and add(operator.itemgetter(1), [1, 2]) == 2
assert add(io.StringIO().write, "abc") == 3
@functools.lru_cache
def twice(x): return x * 2
assert add(twice, 4) == 8
"""
