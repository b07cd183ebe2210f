"""Small benchmarks in the published formats."""

import json

DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "def half(x):\n    return x / 2\n\n\n"
    'def double(x):\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    y = x\n    if y:\n        y += x\n    return y\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n"
    "    assert half(double(3)) == 3\n",
}
JOIN = {
    "task_id": "HumanEval/1",
    "prompt": 'def join(words):\n    """Words with a space between them, as in "a é"."""\n',
    "entry_point": "join",
    "canonical_solution": "    return ' '.join(words)\n",
    "test": "def check(candidate):\n    assert candidate(['a', 'é']) == 'a é'\n",
}
HUMANEVAL = [DOUBLE, JOIN]
PLUS = [
    {k: v for k, v in DOUBLE.items() if k != "test"}
    | {"base_input": [[1], [0]], "plus_input": [[0.1], [-3]], "atol": 0}
]


def infilling(kind: str) -> list[dict]:
    """Returns a task with a part of its solution removed: SingleLine, MultiLine or RandomSpan."""
    spans = {
        "SingleLine": "        y += x\n",
        "MultiLine": "    if y:\n        y += x\n",
        "RandomSpan": "f y:\n        y += ",
    }
    middle = spans[kind]
    before, after = DOUBLE["canonical_solution"].split(middle)
    parts = {"prompt": DOUBLE["prompt"] + before, "suffix": after, "canonical_solution": middle}
    return [{**DOUBLE, **parts, "task_id": f"{kind}Infilling/HumanEval/0/L1"}]


def mbpp_record(number: int) -> dict:
    """Returns a record of MBPP, with the line ends of the published file."""
    asserts = [
        f"assert add_{number}(1) == {number + 1}",
        f"assert set([add_{number}(0)]) == set([{number}])",
        f"assert add_{number}(-1) == {number - 1}",
    ]
    code = f"def add_{number}(x):\r\n    return x + {number}"
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": code,
        "test_list": asserts,
        "test_setup_code": "",
    }


MBPP = [mbpp_record(number) for number in (1, 2, 3, 4, 11, 12, 600)]
MBPP[4] |= {
    "code": "def is_a(x, kind):\n    return isinstance(x, kind)",
    "test_list": ["assert is_a(1, int)", "assert not is_a(1, str)", "assert is_a('', str)"],
}

X_PYTHON = {
    "task_id": "Python/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "declaration": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n\n\n",
    "test": "def check(double):\n    assert double(2) == 4\n\ncheck(double)\n",
}
X_CPP = {
    "task_id": "CPP/0",
    "prompt": "// Twice x.\n#include<vector>\nusing namespace std;\nint twice(int x){\n",
    "declaration": "#include<vector>\nusing namespace std;\nint twice(int x){\n",
    "canonical_solution": "    if (x) { x = x + x; }\n    return x;\n}\n\n",
    "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (twice(2) == 4);\n}\n",
}
X_JS = {
    "task_id": "JavaScript/0",
    "prompt": "// Twice x.\nconst twice = (x) => {\n",
    "declaration": "const twice = (x) => {\n",
    "canonical_solution": "  return 2 * x;\n}\n\n",
    "test": "const testTwice = () => {\n  console.assert(twice(2) === 4)\n}\n\ntestTwice()\n",
}
X_JAVA = {
    "task_id": "Java/0",
    "prompt": "class Solution {\n    // Twice x.\n    public int twice(int x) {\n",
    "declaration": "class Solution {\n    public int twice(int x) {\n",
    "canonical_solution": "        return 2 * x;\n    }\n}",
    "test": "public class Main {\n  public static void main(String[] a) {\n"
    "    if (new Solution().twice(2) != 4) throw new AssertionError();\n  }\n}\n",
}
# With a helper after the function, and packages that only the comment seems to use.
X_GO = {
    "task_id": "Go/0",
    "prompt": 'import (\n    "math"\n)\n\n// Twice the size of x, of all operand. No strings.\n'
    "func Twice(x float64) float64 {\n",
    "import": 'import (\n    "math"\n)\n',
    "declaration": 'import (\n    "math"\n)\n\nfunc Twice(x float64) float64 {\n',
    "canonical_solution": "    if x < 0 {\n        return sum(math.Abs(x))\n    }\n"
    "    return sum(x)\n}\n\n"
    "func sum(x float64) float64 {\n    return x + x\n}\n\n",
    "test_setup": 'package main\n\nimport (\n    "testing"\n)\n',
    "test": "func TestTwice(t *testing.T) {\n    if Twice(-2) != 4 {\n        t.Fail()\n    }\n}\n",
}
MULTIPL_E = [
    {
        "name": "HumanEval_0_double",
        "language": "cpp",
        "prompt": "#include<assert.h>\n// Twice x.\nlong twice(long x) {\n",
        "tests": "}\nint main() {\n    auto candidate = twice;\n"
        "    assert(candidate((2)) == (4));\n}\n",
        "stop_tokens": ["\n}"],
    }
]
SINGLE_LINE = [
    {
        "name": "twice",
        "language": "py",
        "prompt": "def twice(x):\n",
        "suffix": "\n    return y\n",
        "canonical_solution": "    y = 2 * x",
    },
    {
        "name": "twice",
        "language": "js",
        "prompt": "const f = (x) => {\n",
        "suffix": "\n}\n",
        "canonical_solution": "  return x",
    },
]
DOCSTRINGS = [
    {
        "code": 'def twice(x):\n    """Twice the given number.\n\n    More."""\n    return 2 * x\n',
        "docstring_tokens": ["Twice", "the", "given", "number", "."],
    },
    {"code": "def f(x):\n    'one quote'\n    return x\n", "docstring_tokens": ["one", "quote"]},
]
GSM8K = [
    {
        "question": f"{n} apples and one more?",
        "answer": f"One more: <<{n}+1={n + 1}>>{n + 1} apples.\n#### {n + 1:,}",
    }
    for n in (1, 20, 1999)
]
PAL = {"questions": ["One and one?"], "solutions": ["def solution():\n    return 1 + 1"]}
LCC = [{"context": f"import os\n# {i}\n" + "x = 1\n" * i, "gt": f"y_{i} = x"} for i in range(3)]
TRUTHFUL = [
    {
        "question": f"What is {n}?",
        "mc1_targets": {f"The number {n}.": 1, "A letter.": 0},
        "mc2_targets": {f"{n}": 1, "A number": 1, "Word": 0},
    }
    for n in range(8)
]


def write_apps(folder) -> None:
    """Writes problems of both kinds into train/ and test/.

    Some numbers have more digits than Python converts by default.
    """
    huge, twice = "1" + 9000 * "0", "2" + 9000 * "0"
    standard = {"inputs": ["2\n", "30\n", huge], "outputs": ["4 \n", "60.0\n", twice]}
    call = {"fn_name": "twice", "inputs": [[2], [3], ["huge"]], "outputs": [[4], [6], ["huger"]]}
    solutions = {
        "a": "n = int(input())\nprint(2 * n)\n",
        "b": "class Solution:\n    def twice(self, x):\n        return 2 * x\n",
    }
    for split in ("train", "test"):
        for number, (tests, solution, grade) in enumerate(
            [(standard, solutions["a"], "introductory"), (call, solutions["b"], "interview")]
        ):
            place = folder / split / f"{number:04}"
            place.mkdir(parents=True)
            (place / "question.txt").write_text("Print twice the number.")
            (place / "input_output.json").write_text(
                json.dumps(tests).replace('"huge"', huge).replace('"huger"', twice)
            )
            (place / "solutions.json").write_text(json.dumps([solution]))
            (place / "metadata.json").write_text(json.dumps({"difficulty": grade}))
            if number:
                (place / "starter_code.py").write_text(
                    "class Solution:\n    def twice(self, x):\n        "
                )


def write_lines(path, records: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
