"""How each language is built and run.

The published harnesses' rules (MultiPL-E, HumanEval-X) with this machine's toolchains.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from codellama_jax.config import CACHE
from codellama_jax.errors import UserError
from codellama_jax.sandbox.verdicts import WALL, Program

BUILD_SECONDS = 60.0  # a machine with much else to do must not turn an answer into a failure
WORK = "/tmp/work"
JAVATUPLES = "/usr/share/java/javatuples*.jar"
GO_PATH = "/usr/share/gocode"
# Programs read it; it is written outside of the sandbox, from the system's sources
GO_CACHE = os.path.expanduser(f"{CACHE}/go")
GO_PACKAGES = (
    "math",
    "strings",
    "fmt",
    "strconv",
    "time",
    "bytes",
    "regexp",
    "sort",
    "math/rand",
    "crypto/md5",
)
TESTIFY = "github.com/stretchr/testify"
NODE_PATH = ("/usr/lib/node_modules", "/usr/local/lib/node_modules", "/usr/share/nodejs")
LIBRARIES = {  # what a source names -> where it may lie, and what installs it on Debian
    "org.javatuples": ((JAVATUPLES,), "apt-get install libjavatuples-java"),
    TESTIFY: ((f"{GO_PATH}/src/{TESTIFY}",), "apt-get install golang-github-stretchr-testify-dev"),
    "<boost/": (("/usr/include/boost",), "apt-get install libboost-dev"),
    "<openssl/": (("/usr/include/openssl",), "apt-get install libssl-dev"),
    "js-md5": (tuple(f"{folder}/js-md5" for folder in NODE_PATH), "npm install -g js-md5@0.7.3"),
}


@dataclass(frozen=True)
class Language:
    source: str  # the file's name
    tools: dict[str, str]  # program -> the Debian package that brings it
    build: tuple[str, ...] = ()  # a command, split; the first word is one of the tools
    run: tuple[str, ...] = ()
    after_tests: str = ""  # a statement that prints {token}
    # Closing braces, from the end of the file, that this statement goes in front of
    inside: int = 0
    marks: tuple[str, ...] = ()  # output that tells of a failure
    source_needed: bool = True  # at run time


_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx{half}m")
LANGUAGES = {
    "cpp": Language(
        "main.cpp",
        {"g++": "g++"},
        ("g++", "-std=c++17", "main.cpp", "-o", "main"),
        ("./main",),
        '__builtin_puts("{token}");',
        1,
        source_needed=False,
    ),
    "java": Language(
        "Main.java",
        {"javac": "default-jdk-headless", "java": "default-jre-headless"},
        (
            "javac",
            *("-J" + flag for flag in _JVM),
            "-encoding",
            "UTF8",
            "-cp",
            "{jars}",
            "-d",
            ".",
            "Main.java",
        ),
        ("java", *_JVM, "-ea", "-cp", ".:{jars}", "{main}"),
        'System.out.println("{token}");',
        2,
        source_needed=False,
    ),
    "php": Language(
        "main.php",
        {"php": "php-cli"},
        run=("php", "-d", "memory_limit={memory}M", "main.php"),
        after_tests='\necho "{token}";\n',
    ),
    "ts": Language(
        "main.ts",
        {"node": "nodejs", "tsc": "node-typescript"},
        ("node", "{tsc}", "--target", "esnext", "main.ts"),
        ("node", "--max-old-space-size={half}", "main.js"),
        '\n;console.log("{token}");\n',
    ),
    "js": Language(
        "main.js",
        {"node": "nodejs"},
        run=("node", "--max-old-space-size={half}", "main.js"),
        after_tests='\n;console.log("{token}");\n',
    ),
    "cs": Language(
        "main.cs",
        {"mcs": "mono-mcs", "mono": "mono-runtime"},
        ("mcs", "/d:DEBUG", "-r:System.Numerics.dll", "-out:main.exe", "main.cs"),
        ("mono", "main.exe"),
        'System.Console.WriteLine("{token}");',
        2,
        ("DefaultTraceListener.Fail", "Unhandled Exception"),
        False,
    ),
    "sh": Language(
        "main.sh",
        {"bash": "bash"},
        run=("bash", "main.sh"),
        after_tests="\n_status=$?\necho {token}\nexit $_status\n",
    ),
    "go": Language(
        "main_test.go",
        {"go": "golang-go"},
        ("go", "test", "-p", "2", "-c", "-o", "main", "main_test.go"),
        ("./main",),
        'println("{token}");',
        1,
        ("FAIL",),
        False,
    ),
}


def require(language: str) -> None:
    """Raises UserError that names the Debian package of a tool that is missing."""
    for tool, package in LANGUAGES[language].tools.items() if language in LANGUAGES else ():
        if not shutil.which(tool):
            raise UserError(
                f"{language} needs {tool}, which is not on this machine: apt-get install {package}"
            )
    if language == "go" and _go_cache() == GO_CACHE:
        _build_go_libraries()


@functools.cache
def _build_go_libraries() -> None:
    """Builds what Go tests import, unless it is in the cache.

    Else each program would build it anew, ten times as long as itself.
    """
    found = [TESTIFY + "/assert"] if os.path.isdir(LIBRARIES[TESTIFY][0][0]) else []
    imports = "".join(f'import _ "{name}"\n' for name in ("testing", *GO_PACKAGES, *found))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main_test.go").write_text(f"package main\n{imports}")
        command = _fill(LANGUAGES["go"].build, {})
        done = subprocess.run(
            command,
            cwd=folder,
            env=_environment() | {"HOME": folder},
            umask=0o022,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UserError(f"go cannot build {', '.join(GO_PACKAGES)}: {done.stderr.strip()}")


@functools.cache
def _go_cache() -> str:
    """Returns the folder of what Go has built.

    One that stays, or a program's own where the user has no home.
    """
    try:
        os.makedirs(GO_CACHE, exist_ok=True)
    except OSError:
        return "/tmp/cache"
    return GO_CACHE


def places(jars: tuple[str, ...]) -> list[str]:
    """Returns the folders and files outside /usr that the toolchains of this machine lie in, and
    the jars.
    """
    caches = [GO_CACHE] if shutil.which("go") and _go_cache() == GO_CACHE else []
    found = [
        os.path.realpath(path)
        for tools in LANGUAGES.values()
        for tool in tools.tools
        if (path := shutil.which(tool))
    ]
    prefixes = [os.path.dirname(os.path.dirname(path)) for path in found]
    home = os.path.expanduser("~")
    return [
        path
        for path in dict.fromkeys([*prefixes, *caches, *jars])
        if not path.startswith("/usr") and path not in ("/", home)
    ]


def job(program: Program, memory_mb: int, jars: tuple[str, ...]) -> dict:
    """Returns what the judge of the compatible mode reads.

    Files, commands, environment, and how success is told.
    """
    token = "" if program.rule == "output" else secrets.token_hex(12)
    common = {
        "work": WORK,
        "stdin": program.stdin,
        "timeout": program.timeout,
        "wall": program.timeout * WALL,
        "silent": program.rule == "js",
        "token": token,
    }
    nothing = {
        "files": {},
        "build": [],
        "run": [],
        "remove": [],
        "marks": [],
        "env": {},
        "hint": "",
    }
    if program.language == "python":
        return nothing | common | {"python": program.code, "main": program.rule == "output"}
    language = LANGUAGES[program.language]
    words = {
        "memory": memory_mb,
        "half": memory_mb // 2,
        "jars": ":".join([*jars, *glob.glob(JAVATUPLES)]),
    }
    words |= {
        "main": _main_class(program.code),
        "tsc": os.path.realpath(shutil.which("tsc") or "tsc"),
    }
    build = _fill(language.build, words) + (
        ["-lcrypto", "-lssl"] if "openssl/" in program.code else []
    )
    return common | {
        "files": {
            language.source: _with_token(program.code, language, token) if token else program.code
        },
        "build": [(build, BUILD_SECONDS)] if language.build else [],
        "run": _fill(language.run, words),
        "remove": [] if language.source_needed else [language.source],
        "marks": list(language.marks),
        "env": _environment(),
        "hint": _missing_libraries(program.code, jars),
    }


def _fill(command: tuple[str, ...], words: dict) -> list[str]:
    program, *arguments = (part.format(**words) for part in command or ("",))
    if not program:
        return []
    return [
        program if program.startswith(".") else os.path.abspath(shutil.which(program) or program),
        *arguments,
    ]


def _missing_libraries(code: str, jars: tuple[str, ...]) -> str:
    """Says how to install the libraries that the code names and that this machine lacks."""
    there = lambda places: any(map(glob.glob, places)) or (jars and places == (JAVATUPLES,))
    lacking = [
        command
        for mark, (places, command) in LIBRARIES.items()
        if mark in code and not there(places)
    ]
    return f"{' && '.join(lacking)}: " if lacking else ""


def _with_token(code: str, language: Language, token: str) -> str:
    """Puts the statement that prints the token after the last statement of the tests."""
    statement, place = language.after_tests.format(token=token), len(code)
    for _ in range(language.inside):
        place = code.rfind("}", 0, place)
    return code + statement if place < 0 else code[:place] + statement + code[place:]


def _main_class(code: str) -> str:
    """Returns the name of the last Java class that is declared before `main`."""
    before = code[: code.find("static void main")]
    return ([*re.findall(r"\bclass\s+(\w+)", before)] or ["Main"])[-1]


@functools.cache
def _environment() -> dict[str, str]:
    tools = [shutil.which(tool) for language in LANGUAGES.values() for tool in language.tools]
    folders = dict.fromkeys(
        [*(os.path.dirname(path) for path in tools if path), "/usr/local/bin", "/usr/bin", "/bin"]
    )
    mono = {"MONO_TRACE_LISTENER": "Console.Error", "NODE_PATH": ":".join(NODE_PATH)}
    go = {
        "GO111MODULE": "off",
        "GOPATH": GO_PATH,
        "GOCACHE": _go_cache(),
        "GOFLAGS": "-buildvcs=false",
        "GOMAXPROCS": "2",
    }
    return {"PATH": ":".join(folders), "TMPDIR": "/tmp", "LANG": "C.UTF-8"} | mono | go
