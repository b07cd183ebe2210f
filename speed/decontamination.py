"""Finds planted solutions of benchmarks in a corpus: how many, by which rule, and at what speed.

    PYTHONPATH=. python speed/decontamination.py DATA

DATA has the published files in humaneval/, mbpp/ and humaneval_x/. Each solution is a file, without
its docstring: as published, with other indentation, with other names, and inside a larger file; and
with other names after its prompt. The clean files are this interpreter's standard library and
installed packages. Every matched clean file is printed, so that a reader can judge whether it is a
false positive.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pygments import lexers, token

from codellama_jax.benchmarks.texts import benchmark_texts
from codellama_jax.data.prepare.contamination.index import (
    BenchmarkText,
    Decontamination,
    Index,
    find,
)
from codellama_jax.data.prepare.contamination.part_files import (
    common_grams,
    count_grams,
    scan_part,
    write_index,
)
from codellama_jax.data.prepare.parts import DOCUMENTS, read_rows, write_rows

ALL = Decontamination(substring=True, similarity=True, ngrams=True, tokens=True)
RULES = ("substring", "similarity", "ngrams", "tokens")
CLEAN = 10_000  # files
KINDS = (".py", ".js", ".c", ".h", ".cpp", ".hpp", ".java", ".go", ".ts")
LARGEST = 1_000_000  # bytes
LANGUAGES = {"Python": "python", "CPP": "cpp", "Java": "java", "JavaScript": "js", "Go": "go"}
DOCSTRING = re.compile(r"\n\s*(\"\"\"|''').*?\1\s*?(?=\n)", re.S)
# Question, solution: tasks in the layout of APPS, whose own files are not at DATA.
APPS = (
    (
        "A shop sells n boxes. For each box you get its weight. Print the lightest and the"
        " heaviest weight, and how many boxes are heavier than the mean of all boxes.",
        "n = int(input())\nweights = list(map(int, input().split()))\nmean = sum(weights) / n\n"
        "print(min(weights), max(weights))\nprint(len([w for w in weights if w > mean]))\n",
    ),
    (
        "You are given a string of brackets. In one move you may remove one bracket. Print the"
        " smallest number of moves after which the brackets are balanced.",
        "s = input().strip()\ndepth = moves = 0\nfor c in s:\n    if c == '(':\n"
        "        depth += 1\n    elif depth:\n        depth -= 1\n    else:\n        moves += 1\n"
        "print(moves + depth)\n",
    ),
    (
        "Print the number of pairs of different cities between which there is no direct road.",
        "n, m = map(int, input().split())\nroads = set()\nfor _ in range(m):\n"
        "    a, b = map(int, input().split())\n    roads.add((min(a, b), max(a, b)))\n"
        "print(n * (n - 1) // 2 - len(roads))\n",
    ),
)


def write_apps(folder: Path) -> None:
    """Writes the tasks in the layout of APPS."""
    for number, (question, solution) in enumerate(APPS):
        task = folder / "test" / f"{number:04}"
        task.mkdir(parents=True)
        (task / "question.txt").write_text(question)
        (task / "input_output.json").write_text(json.dumps({"inputs": [], "outputs": []}))
        (task / "solutions.json").write_text(json.dumps([solution]))


def solutions(texts: list[BenchmarkText]) -> Iterator[tuple[str, str, str, str]]:
    """Yields (benchmark, language, program without docstring, program with its prompt)."""
    # By benchmark and task: a solution and its prompt are separate texts of the index.
    prompts = {text[:2]: text.text for text in texts if text.kind == "prompt"}
    for text in texts:
        if text.kind != "solution":
            continue
        name, language, program = text.benchmark, "python", text.text
        prompt = prompts[text[:2]]
        documented = f'"""{prompt}"""\n{program}'
        if name == "humaneval_x":
            language = LANGUAGES[text.task.partition("/")[0]]
            name = f"{name}, {language}"
        if text.benchmark.startswith("humaneval"):
            # Of other languages than Python the signature is the last line of the prompt.
            documented = prompt + program
            lines = prompt.rstrip("\n").split("\n")
            start = DOCSTRING.sub("", prompt) if language == "python" else f"{lines[-1]}\n"
            program = start.rstrip("\n") + "\n" + program
        yield name, language, program, documented


def indented(program: str, language: str) -> str:
    """Returns a program with tabs for the spaces of its indentation."""
    lines = []
    for line in program.split("\n"):
        code = line.lstrip(" ")
        lines.append("\t" * ((len(line) - len(code)) // 2) + code)
    return "\n".join(lines)


def renamed(program: str, language: str) -> str:
    """Returns a program with another name for each of its names, but attributes and builtins."""
    names: dict[str, str] = {}
    text, previous = "", ""
    for kind, value in lexers.get_lexer_by_name(language).get_tokens(program):
        is_builtin = kind in token.Name.Builtin or kind in token.Name.Namespace
        # Attributes and builtins keep their names, because the program would not run otherwise.
        if kind in token.Name and not is_builtin and previous != "." and value.isidentifier():
            value = names.setdefault(value, f"{value[:1]}{len(names)}")
        previous = value.strip() or previous
        text += value
    return text


VARIANTS: dict[str, Callable[[str, str], str]] = {
    "as published": lambda program, language: program,
    "tabs": indented,
    "renamed": renamed,
}


def clean_files() -> list[tuple[str, str]]:
    """Returns CLEAN different files with their paths."""
    files: dict[str, str] = {}
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in KINDS and path.is_file() and path.stat().st_size < LARGEST:
                # Keyed by text: copies of a file in several packages count once.
                files.setdefault(path.read_text(errors="replace"), str(path))
    # Evenly from all packages.
    paths = [(path, text) for text, path in files.items()]
    step = max(1, len(paths) // CLEAN)
    return paths[::step][:CLEAN]


def scan(folder: Path, name: str, documents: list[str]) -> list[dict]:
    """Runs the stage on one part, and returns its rows."""
    rows = []
    for number, text in enumerate(documents):
        rows.append({"id": str(number), "text": text, "stars": -1, "digest": bytes(16)})
    part, index = folder / f"{name}.parquet", folder / "index.json"
    write_rows(part, DOCUMENTS, rows, "text")
    grams, common, out = (folder / f"{name}-{kind}" for kind in ("grams", "common", "rows"))
    # The same three passes as in `prepare`: grams that many documents share are no evidence of a
    # leak and are left out.
    count_grams(part, index, grams)
    common_grams([grams], ALL, common)
    scan_part(part, index, str(common), out)
    return list(read_rows(out))


def planted(folder: Path, texts: list[BenchmarkText], large: list[str]) -> None:
    """Prints how many solutions each rule finds, by benchmark and variant."""
    programs = list(solutions(texts))
    benchmarks = dict.fromkeys(name for name, *_ in programs)
    print("| benchmark | copy | tasks | substring | similarity | 13-grams | tokens | removed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for benchmark in benchmarks:
        chosen = [program for program in programs if program[0] == benchmark]
        variants = {}
        for variant, change in VARIANTS.items():
            variants[variant] = [change(program, language) for _, language, program, _ in chosen]
        variants["renamed, with prompt"] = [
            renamed(text, language) for _, language, _, text in chosen
        ]
        inside = []
        for number, program in enumerate(variants["as published"]):
            host = large[number % len(large)]
            # At a line end near the middle, where exact text and grams have neighbours on both
            # sides.
            middle = host.find("\n", len(host) // 2) + 1
            inside.append(f"{host[:middle]}\n{program}\n{host[middle:]}")
        variants["in a larger file"] = inside
        for variant, documents in variants.items():
            # A part per variant, so that its grams are in few documents.
            rows = scan(folder, variant, documents)
            counts = []
            for rules in (*({rule} for rule in RULES), set(RULES[:3])):
                # A document counts once, however many spans of it match.
                counts.append(len({row["row"] for row in rows if row["rule"] in rules}))
            cells = [benchmark, variant, len(documents), *counts]
            print(f"| {' | '.join(map(str, cells))} |")


def false_positives(folder: Path, files: list[tuple[str, str]]) -> None:
    """Prints the clean files that match, with the matching text."""
    rows = scan(folder, "clean", [text for _, text in files])
    for rule in RULES:
        matched = {row["row"] for row in rows if row["rule"] == rule}
        print(f"\nclean files with a match of {rule}: {len(matched)} of {len(files):,}")
        for row in rows:
            if row["rule"] == rule and rule != "tokens":
                path, text = files[row["row"]]
                match = text[row["start"] : row["end"]]
                print(f"  {path}: {row['benchmark']} {row['task']} {row['kind']}: {match[:160]!r}")


def speed(texts: list[BenchmarkText], files: list[tuple[str, str]]) -> None:
    """Prints the seconds to build the index, and MB/s of one core by rule."""
    documents = [text for _, text in files]
    size = sum(len(text.encode()) for text in documents) / 1e6
    print(f"\n{size:.0f} MB of clean files, {len(texts):,} texts of benchmarks")
    for rules in (*((rule,) for rule in RULES), RULES):
        params = Decontamination(**dict.fromkeys(rules, True))
        start = time.process_time()
        index = Index.build(texts, params)
        built = time.process_time()
        for document in documents:
            # Without files and Parquet: the rules themselves are measured.
            find(document, index)
        seconds = time.process_time() - built
        rate = f"{size / seconds:.0f} MB/s per core"
        print(f"{' + '.join(rules)}: {rate}; index built in {built - start:.2f} s")


def main() -> None:
    """Plants the solutions, scans the clean files, and measures the speed."""
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_apps(folder / "apps")
        texts = benchmark_texts(
            {
                "humaneval": str(data / "humaneval" / "HumanEval.jsonl.gz"),
                "mbpp": str(data / "mbpp" / "mbpp.jsonl"),
                "apps": str(folder / "apps"),
            }
        )
        for language in ("python", "cpp", "java", "js", "go"):
            path = data / "humaneval_x" / f"humaneval_{language}.jsonl.gz"
            texts += benchmark_texts({"humaneval_x": str(path)})
        write_index(folder / "index.json", texts, ALL)
        files = clean_files()
        # Large enough that a solution is a small part of the file, and small enough to scan
        # quickly.
        large = [text for _, text in files if 10_000 < len(text) < 50_000][:200]
        planted(folder, texts, large)
        false_positives(folder, files)
        speed(texts, files)


if __name__ == "__main__":
    main()
