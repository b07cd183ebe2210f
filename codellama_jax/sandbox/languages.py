"""How a program of each language is built, run and judged.

The rules are those of the published harnesses (MultiPL-E, HumanEval-X), with the toolchains of
this machine.
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
from typing import Any

from codellama_jax.config import CACHE
from codellama_jax.errors import UserError
from codellama_jax.sandbox.verdicts import WALL, Program

# Generous, so that a busy machine does not turn a correct program into a failure.
BUILD_SECONDS = 60.0
WORK = "/tmp/work"
JAVATUPLES = "/usr/share/java/javatuples*.jar"
GO_PATH = "/usr/share/gocode"
# Built outside of the sandbox, from the system's sources; programs only read it.
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
# Part of a source that names a library -> (patterns of paths where the library may be installed,
# the command that installs it on Debian).
LIBRARIES = {
    "org.javatuples": ((JAVATUPLES,), "apt-get install libjavatuples-java"),
    TESTIFY: ((f"{GO_PATH}/src/{TESTIFY}",), "apt-get install golang-github-stretchr-testify-dev"),
    "<boost/": (("/usr/include/boost",), "apt-get install libboost-dev"),
    "<openssl/": (("/usr/include/openssl",), "apt-get install libssl-dev"),
    "js-md5": (tuple(f"{folder}/js-md5" for folder in NODE_PATH), "npm install -g js-md5@0.7.3"),
}


@dataclass(frozen=True)
class Language:
    """One language of the compatible mode.

    Attributes:
        source: name of the source file.
        tools: each program that is needed -> the Debian package that contains it.
        build: the command that compiles, empty if there is none. Its first part is one of the
            tools; {half} (half of the memory, in MiB), {jars} and {tsc} are filled in.
        run: the command that runs the program; {memory} (MiB), {half}, {jars} and {main} are
            filled in.
        after_tests: a statement that prints {token}, or its halves {first} and {second}. These are
            apart in a language whose source is read at run time: a program that prints the rest of
            its source, as after `?>` in PHP, must not print the token.
        closing_braces: the statement is inserted in front of this many closing braces, counted
            from the end of the file, so that it follows the tests inside their function.
        failure_marks: output that reports a failure although the exit status is 0.
        source_needed: whether the source is needed at run time.
    """

    source: str
    tools: dict[str, str]
    build: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    after_tests: str = ""
    closing_braces: int = 0
    failure_marks: tuple[str, ...] = ()
    source_needed: bool = True


# Flags for programs that run for less than a second: no second compiler, no parallel garbage
# collector, no shared file of counters.
_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx{half}m")
_CPP = Language(
    source="main.cpp",
    tools={"g++": "g++"},
    build=("g++", "-std=c++17", "main.cpp", "-o", "main"),
    run=("./main",),
    after_tests='__builtin_puts("{token}");',
    closing_braces=1,
    source_needed=False,
)
_JAVA = Language(
    source="Main.java",
    tools={"javac": "default-jdk-headless", "java": "default-jre-headless"},
    build=(
        "javac",
        *("-J" + flag for flag in _JVM),
        *("-encoding", "UTF8", "-cp", "{jars}", "-d", ".", "Main.java"),
    ),
    # -ea: Java ignores `assert` without it.
    run=("java", *_JVM, "-ea", "-cp", ".:{jars}", "{main}"),
    after_tests='System.out.println("{token}");',
    closing_braces=2,
    source_needed=False,
)
_PHP = Language(
    source="main.php",
    tools={"php": "php-cli"},
    run=("php", "-d", "memory_limit={memory}M", "main.php"),
    after_tests='\necho "{first}", "{second}";\n',
)
_TYPESCRIPT = Language(
    source="main.ts",
    tools={"node": "nodejs", "tsc": "node-typescript"},
    build=("node", "{tsc}", "--target", "esnext", "main.ts"),
    run=("node", "--max-old-space-size={half}", "main.js"),
    after_tests='\n;console.log("{first}" + "{second}");\n',
)
_JAVASCRIPT = Language(
    source="main.js",
    tools={"node": "nodejs"},
    run=("node", "--max-old-space-size={half}", "main.js"),
    after_tests='\n;console.log("{first}" + "{second}");\n',
)
_C_SHARP = Language(
    source="main.cs",
    tools={"mcs": "mono-mcs", "mono": "mono-runtime"},
    # /d:DEBUG: C# ignores Debug.Assert without it.
    build=("mcs", "/d:DEBUG", "-r:System.Numerics.dll", "-out:main.exe", "main.cs"),
    run=("mono", "main.exe"),
    after_tests='System.Console.WriteLine("{token}");',
    closing_braces=2,
    # A failed Debug.Assert prints a trace and continues.
    failure_marks=("DefaultTraceListener.Fail", "Unhandled Exception"),
    source_needed=False,
)
_BASH = Language(
    source="main.sh",
    tools={"bash": "bash"},
    run=("bash", "main.sh"),
    # The exit status is that of the tests, not of `echo`.
    after_tests="\n_status=$?\necho {first}''{second}\nexit $_status\n",
)
_GO = Language(
    source="main_test.go",
    tools={"go": "golang-go"},
    build=("go", "test", "-p", "2", "-c", "-o", "main", "main_test.go"),
    run=("./main",),
    after_tests='println("{token}");',
    closing_braces=1,
    failure_marks=("FAIL",),
    source_needed=False,
)
LANGUAGES = {
    "cpp": _CPP,
    "java": _JAVA,
    "php": _PHP,
    "ts": _TYPESCRIPT,
    "js": _JAVASCRIPT,
    "cs": _C_SHARP,
    "sh": _BASH,
    "go": _GO,
}


def require(language: str) -> None:
    """Raises UserError that names the Debian package of a tool that is missing."""
    tools = LANGUAGES[language].tools if language in LANGUAGES else {}
    for tool, package in tools.items():
        if not shutil.which(tool):
            raise UserError(
                f"{language} needs {tool}, which is not on this machine: apt-get install {package}"
            )
    if language == "go" and _go_cache() == GO_CACHE:
        _build_go_libraries()


@functools.cache
def _build_go_libraries() -> None:
    """Builds the packages that Go tests import, unless they are in the cache.

    Without the cache each program would build them again, which takes ten times as long as the
    program itself. Raises UserError with Go's message if that fails.
    """
    packages = ["testing", *GO_PACKAGES]
    if os.path.isdir(f"{GO_PATH}/src/{TESTIFY}"):
        packages.append(f"{TESTIFY}/assert")
    imports = "".join(f'import _ "{name}"\n' for name in packages)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main_test.go").write_text(f"package main\n{imports}")
        done = subprocess.run(
            _fill(LANGUAGES["go"].build, {}),
            cwd=folder,
            env=_environment() | {"HOME": folder},
            umask=0o022,  # programs read the cache under another uid
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UserError(f"go cannot build {', '.join(GO_PACKAGES)}: {done.stderr.strip()}")


@functools.cache
def _go_cache() -> str:
    """Returns the folder in which Go keeps compiled packages.

    If the user's home is not writable, this is a folder in each program's own /tmp, which is
    removed with the program.
    """
    try:
        os.makedirs(GO_CACHE, exist_ok=True)
    except OSError:
        return "/tmp/cache"
    return GO_CACHE


def tool_paths(jars: tuple[str, ...]) -> list[str]:
    """Returns the paths outside /usr that programs need.

    These are the folders of the toolchains, Go's cache, and `jars`.
    """
    paths = []
    for language in LANGUAGES.values():
        for tool in language.tools:
            executable = shutil.which(tool)
            if executable:
                # PREFIX/bin/TOOL: the libraries of the tool are in other folders of PREFIX.
                paths.append(os.path.dirname(os.path.dirname(os.path.realpath(executable))))
    if shutil.which("go") and _go_cache() == GO_CACHE:
        paths.append(GO_CACHE)
    paths += jars
    # A tool in /bin or ~/bin must not make the system's root or the user's files visible.
    hidden = ("/", os.path.expanduser("~"))
    unique = dict.fromkeys(paths)
    return [path for path in unique if not path.startswith("/usr") and path not in hidden]


def job(program: Program, memory_mb: int, jars: tuple[str, ...]) -> dict[str, Any]:
    """Returns the input of the compatible mode's judge.

    It holds files, commands, environment, limits, and how success is recognized.
    """
    # A program that prints this token has reached the end of its tests.
    token = "" if program.rule == "output" else secrets.token_hex(12)
    common = {
        "work": WORK,
        "stdin": program.stdin,
        "timeout": program.timeout,
        "wall": program.timeout * WALL,
        "silent": program.rule == "js",
        "token": token,
    }
    if program.language == "python":
        # The judge runs Python programs in a fork of its interpreter, without a command.
        no_commands: dict[str, Any] = {
            "files": {},
            "build": [],
            "run": [],
            "remove": [],
            "marks": [],
            "env": {},
            "hint": "",
        }
        return no_commands | common | {"python": program.code, "main": program.rule == "output"}
    language = LANGUAGES[program.language]
    values = {
        "memory": memory_mb,
        "half": memory_mb // 2,
        "jars": ":".join([*jars, *glob.glob(JAVATUPLES)]),
        "main": _main_class(program.code),
        "tsc": os.path.realpath(shutil.which("tsc") or "tsc"),
    }
    build = _fill(language.build, values)
    if "openssl/" in program.code:
        # HumanEval-X's C++ programs may compute MD5 sums.
        build += ["-lcrypto", "-lssl"]
    code = _with_token(program.code, language, token) if token else program.code
    return common | {
        "files": {language.source: code},
        "build": [(build, BUILD_SECONDS)] if language.build else [],
        "run": _fill(language.run, values),
        # A program could read the token in its own source.
        "remove": [] if language.source_needed else [language.source],
        "marks": list(language.failure_marks),
        "env": _environment(),
        "hint": missing_libraries(program.code, jars),
    }


def _fill(command: tuple[str, ...], values: dict[str, Any]) -> list[str]:
    """Fills `values` into a command and makes the path of its program absolute."""
    if not command:
        return []
    program, *arguments = [part.format(**values) for part in command]
    if not program.startswith("."):
        program = os.path.abspath(shutil.which(program) or program)
    return [program, *arguments]


def missing_libraries(code: str, jars: tuple[str, ...]) -> str:
    """Returns commands that install the libraries which `code` names and this machine lacks.

    The judge puts them in front of the message of a failure.
    """
    commands = []
    for name, (patterns, command) in LIBRARIES.items():
        is_installed = any(map(glob.glob, patterns))
        # The user's archives on the class path may contain javatuples.
        is_replaced = bool(jars) and patterns == (JAVATUPLES,)
        if name in code and not is_installed and not is_replaced:
            commands.append(command)
    return f"{' && '.join(commands)}: " if commands else ""


def _with_token(code: str, language: Language, token: str) -> str:
    """Inserts the statement that prints the token after the last statement of the tests."""
    half = len(token) // 2
    halves = {"first": token[:half], "second": token[half:]}
    statement = language.after_tests.format(token=token, **halves)
    position = len(code)
    for _ in range(language.closing_braces):
        position = code.rfind("}", 0, position)
    if position < 0:
        # A program with too few braces does not compile, with or without the statement.
        return code + statement
    return code[:position] + statement + code[position:]


def _main_class(code: str) -> str:
    """Returns the name of the last Java class that is declared before `main`."""
    before = code[: code.find("static void main")]
    classes = re.findall(r"\bclass\s+(\w+)", before)
    return classes[-1] if classes else "Main"


@functools.cache
def _environment() -> dict[str, str]:
    """Returns the environment of programs, which holds nothing of the user's environment."""
    folders = []
    for language in LANGUAGES.values():
        for tool in language.tools:
            path = shutil.which(tool)
            if path:
                folders.append(os.path.dirname(path))
    folders += ["/usr/local/bin", "/usr/bin", "/bin"]
    return {
        "PATH": ":".join(dict.fromkeys(folders)),
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        # Mono reports a failed assertion only to the listener that is named here.
        "MONO_TRACE_LISTENER": "Console.Error",
        "NODE_PATH": ":".join(NODE_PATH),
        # Packages come from GO_PATH: without a network Go cannot download modules.
        "GO111MODULE": "off",
        "GOPATH": GO_PATH,
        "GOCACHE": _go_cache(),
        "GOFLAGS": "-buildvcs=false",
        # Each thread counts against the limit of processes.
        "GOMAXPROCS": "2",
    }
