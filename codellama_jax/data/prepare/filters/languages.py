"""Names the language of a file as GitHub's linguist does, by its name, extension and content.

The names of linguist ("Python", "C++", "Jupyter Notebook") are those of The Stack and of StarCoder.
The rules in order: the file's name, its extension, and where it has none or languages share it, the
interpreter that the first line names, then regular expressions on the content, shortened from
linguist's. Its last rule, a trained classifier, is replaced by the most frequent language.
Extensions that the table of `language_names.py` does not list come from pygments.
"""

from __future__ import annotations

import functools
import re
from pathlib import PurePosixPath

from codellama_jax.data.prepare.filters.language_names import FILES, INTERPRETERS, SPELLINGS

CONSIDERED = 50 * 1024  # characters of the text that the rules search; linguist's limit

_SHEBANG = re.compile(r"#!\s*(\S+)(?:[ \t]+(.*))?")
_ASSIGNMENT_OR_FLAG = re.compile(r"-|\w+=")  # options of env before the program
_WILDCARDS = set("*?[")
_HASH_INCLUDE = r"^[ \t]*#[ \t]*(include|define|pragma|ifn?def)\b"
_XML = r"\A\s*<\?xml|\A\s*<!DOCTYPE|\A\s*<[A-Za-z][\w:.-]*(\s+[\w:.-]+=|\s*/?>)"
# One alternative for all that starts a line: the others are tried at every character.
_CPP = (
    r"^[ \t]*(#[ \t]*include <(algorithm|array|atomic|c?(std\w+|string)|fstream|functional|iostream"
    r"|list|map|memory|mutex|optional|queue|set|sstream|stack|string_view|thread|tuple|type_traits"
    r"|unordered_\w+|utility|variant|vector)>|template\s*<|(using )?namespace\s+\w"
    r"|class\s+\w[\w:<>]*\s*(final\s*)?[{:]|(private|public|protected):$"
    r"|(try|constexpr|typename|virtual|friend)\b)|std::\w"
)
_OBJECTIVE_C = (
    r"^[ \t]*(@(interface|class|protocol|property|end|synchronised|selector|implementation)\b"
    r"|#import\s+.+\.h[\">])"
)
_PROLOG = r"^[^#%\n]*:-|^[ \t]*[a-z]\w*\(.*\)\.\s*$"
_RAKU = r"^[ \t]*(use v6|(my )?(grammar|class|role|module)\s+\w+)"

# No expression may take quadratic time: they are anchored or of bounded length, see the tests.
# For an extension that languages share, the rules in order: a language and the expression that the
# text must match. The last one, without an expression, is taken otherwise.
AMBIGUOUS: dict[str, tuple[tuple[str, str], ...]] = {
    ".cgi": (
        ("Python", r"^[ \t]*(import|def)\s+\w+"),
        ("Shell", r"^[ \t]*(fi|done|esac)\b"),
        ("Perl", ""),
    ),
    ".cl": (
        ("Common Lisp", r"^[ \t]*\((?i:defun|in-package|defpackage|defmacro) "),
        ("OpenCL", r"\b__kernel\b|\bget_global_id\b|^[ \t]*kernel\s+void|" + _HASH_INCLUDE),
        ("Common Lisp", ""),
    ),
    ".cls": (
        ("VBA", r"^[ \t]*Attribute\s+VB_Name\s*=|^VERSION \d\.\d CLASS"),
        ("TeX", r"\\(NeedsTeXFormat|ProvidesClass|RequirePackage|LoadClass)\b"),
        ("ObjectScript", r"^Class\s+[\w.%]+(\s+Extends|\s*$|\s*\[|\s*\{)"),
        ("OpenEdge ABL", r"(?i)^[ \t]*(class|interface)\s+\w.*:[ \t]*$"),
        ("Apex", ""),
    ),
    ".cs": (("Smalltalk", r"![\w\s]+methodsFor: "), ("C#", "")),
    ".d": (
        ("D", r"^[ \t]*(module|import)\s+[\w.*]+\s*[;:,]|^[ \t]*(void|int|auto)\s+main\s*\("),
        ("DTrace", r"^[ \t]*#!/usr/sbin/dtrace|^\w+:\w*:\w*:\w*"),
        ("Makefile", r"^[/\\.\w -]+\.o\b[^:\n]{0,300}:"),
        ("D", ""),
    ),
    ".f": (("Forth", r"^: \w+"), ("Fortran", "")),
    ".for": (("Forth", r"^: \w+"), ("Fortran", "")),
    ".fs": (
        ("Forth", r"^(: |new-device)"),
        ("GLSL", r"^[ \t]*(#version|precision|uniform|varying|vec[234])\s"),
        ("F#", ""),
    ),
    ".gs": (
        ("GLSL", r"^[ \t]*#version\s+\d+"),
        ("Gosu", r"^[ \t]*uses\s+(java|gw)\."),
        ("JavaScript", ""),
    ),
    ".h": (("Objective-C", _OBJECTIVE_C), ("C++", _CPP), ("C", "")),
    ".hh": (("Hack", r"\A<\?hh"), ("C++", "")),
    ".inc": (
        ("PHP", r"\A\s*<\?(php|=|\s)"),
        ("POV-Ray SDL", r"^[ \t]*#(declare|local|macro|while)\s"),
        ("Pascal", r"(?i)^[ \t]*(\{\$|procedure\s+\w+|function\s+\w+\s*[(:].*;\s*$|unit\s+\w+;)"),
        ("SQL", r"(?i)^[ \t]*(create|alter|insert|select)\s+(table|into|\*)"),
        ("SourcePawn", r"^[ \t]*#(tryinclude|pragma)\b|^[ \t]*(native|forward|stock|public)\s+\w+"),
        ("BitBake", r"^(inherit|require|SRC_URI|PACKAGES|LICENSE)\b"),
        ("C++", _HASH_INCLUDE + r"|^[ \t]*//|^[ \t]*/\*|\bstd::|::\w+\("),
        ("HTML", r"(?i)<(html|div|table|p|a|span|script|br|ul|li)\b"),
        ("Assembly", r"(?i)^[ \t]*(\.?(equ|macro|include|section|org)|mov|\w+\s+equ)\b"),
        ("", ""),
    ),
    ".l": (
        ("Common Lisp", r"^[ \t]*\((def(un|macro|var)|in-package)\s"),
        ("Lex", r"^%[%{}]"),
        ("Roff", r"^\.[A-Za-z]{2}(\s|$)"),
        ("Lex", ""),
    ),
    ".m": (
        ("Objective-C", _OBJECTIVE_C + r"|^[ \t]*#import\b|^[ \t]*@autoreleasepool"),
        ("Mercury", r"^:- module"),
        ("MUF", r"^: "),
        ("M", r"^[ \t]*;"),
        ("Wolfram Language", r"\(\*|\[\[[^\[\]\n]{0,200}\]\]|\b\w+\[\w*_\]\s*:=|^\w+`"),
        ("MATLAB", r"^[ \t]*%|^[ \t]*(function|classdef|end|clear|clc|close|plot|disp)\b"
                   r"|\b\w+[ \t]*=[^=\n].{0,200};[ \t]*$"),
        ("Limbo", r"^\w+\s*:\s*module\s*\{"),
        ("Objective-C", _HASH_INCLUDE),
        ("MATLAB", ""),
    ),
    ".md": (
        ("GCC Machine Description", r"^(;;|\(define_|\(include )"),
        ("Markdown", ""),
    ),
    ".ml": (
        ("Standard ML", r"=>\s|\bcase\b.{0,200}\bof\b|\A\s*fun\s"
                        r"|^[ \t]*(structure|signature|functor)\s+\w+\s*="),
        ("OCaml", ""),
    ),
    ".mm": (("XML", _XML), ("Objective-C++", "")),
    ".mod": (
        ("XML", r"<!ENTITY "),
        ("NMODL", r"\b(NEURON|INITIAL|UNITS)\b"),
        ("Modula-2", r"^[ \t]*(?i:MODULE|END) [\w.]+;"),
        ("Linux Kernel Module", r"^\S+\.ko$|^[ \t]*\S+\.o\s*$"),
        ("AMPL", ""),
    ),
    ".php": (("Hack", r"\A(#!.*\n)?<\?hh"), ("PHP", "")),
    ".pl": (
        ("Prolog", r"\A(?![\s\S]*^[ \t]*(use|my|our|sub|package)\s)[\s\S]*?(" + _PROLOG + ")"),
        ("Raku", r"^[ \t]*use v6\b"),
        ("Perl", ""),
    ),
    ".pm": (("X PixMap", r"^[ \t]*/\* XPM \*/"), ("Raku", _RAKU + r"\b.*\{"), ("Perl", "")),
    ".pp": (
        ("Pascal", r"(?i)^[ \t]*(unit|program|uses|interface|begin|end[.;])\b"),
        ("Puppet", ""),
    ),
    ".pro": (
        ("Prolog", _PROLOG),
        ("INI", r"^last_client="),
        ("QMake", r"^[ \t]*(QT|TEMPLATE|CONFIG|SOURCES|HEADERS|TARGET|SUBDIRS)\s*[+-]?="),
        ("Proguard", r"^-(keep|dont|allow|assume)\w*"),
        ("IDL", r"(?i)^[ \t]*(pro|function)\s+\w+|compile_opt"),
        ("IDL", ""),
    ),
    ".properties": (("INI", r"^\[\w[^\]\n]*\]\s*$"), ("Java Properties", "")),
    ".r": (
        ("Rebol", r"(?i)\bREBOL\s*\["),
        ("Rez", r"^(resource|type)\s+'"),
        ("R", ""),
    ),
    ".rs": (
        ("XML", r"\A\s*<\?xml"),
        ("RenderScript", r"^[ \t]*#(include|pragma)\b"),
        ("Rust", ""),
    ),
    ".s": (("Assembly", ""),),
    ".sc": (("SuperCollider", r"^[ \t]*~\w+\s*=|\bSynthDef\b|^[ \t]*[A-Z]\w* : \w+ \{|\bvar\s+<"),
            ("Scala", "")),
    ".sql": (
        ("PLpgSQL", r"(?i)\blanguage\s+'?plpgsql'?|\bAS\s+\$\w*\$|\bRETURNS\s+(trigger|setof)\b"),
        ("SQLPL", r"(?i)\b(alter module|mode db2sql|begin atomic)\b"),
        ("PLSQL", r"(?i)\$\$PLSQL_|\b(XMLTYPE|sysdate|systimestamp|connect by|varchar2)\b"
                  r"|\.nextval\b|\bauthid\s+\w+|\bpls_integer\b"),
        ("TSQL", r"(?i)^[ \t]*GO\s*$|\bBEGIN\s+(TRY|CATCH)\b|\bOUTPUT INSERTED\b"
                 r"|^[ \t]*DECLARE\s+@\w+|\[dbo\]\."),
        ("SQL", ""),
    ),
    ".t": (("Raku", _RAKU), ("Turing", r"^[ \t]*%[ \t]+|^[ \t]*var\s+\w+(\s*:\s*\w+)?\s*:=\s*\w+"),
           ("Perl", "")),
    ".toc": (("World of Warcraft Addon Data", r"^## |@no-lib-strip@"), ("TeX", "")),
    ".ts": (("XML", r"\A\s*<(\?xml|!DOCTYPE TS|TS\b)"), ("TypeScript", "")),
    ".tsx": (("XML", r"\A\s*<\?xml"), ("TypeScript", "")),
    ".txt": (
        ("Vim Help File", r"^[ \t]*vim:.*\bft=help\b"),
        ("Adblock Filter List", r"\A\[Adblock"),
        ("Text", ""),
    ),
    ".v": (
        ("Rocq Prover", r"^[ \t]*(Proof|Qed|Admitted|Theorem|Lemma|Require|Inductive|Fixpoint)\b"),
        ("Verilog", r"^[ \t]*(module\s+\w+|endmodule|`(define|ifdef|include|timescale)\b"
                    r"|always\s*@)"),
        ("V", r"^[ \t]*(fn\s+(\(\w+ &?\w+\)\s*)?\w+\(|module\s+main\s*$|\$if\b|\w+\s*:=)"),
        ("Verilog", ""),
    ),
    ".yy": (("JSON", r"\A\s*[{\[]"), ("Yacc", "")),
}  # fmt: skip


def language_of(path: str, text: str = "") -> str:
    """Returns the language of a file as linguist names it, "" if it is unknown.

    Args:
        path: the name of the file, with or without folders.
        text: its content, or the start of it. Without it a shared extension stands for its most
            frequent language.
    """
    name = path[path.rfind("/") + 1 :]
    language, rules = _by_name(name)
    # A first line that names the interpreter decides before the content: scripts often have no
    # extension, or a shared one.
    if not language and text.startswith("#!"):
        language = _by_shebang(text)
    if language or not rules:
        return language
    return _by_content(rules, text[:CONSIDERED])


def canonical(name: str) -> str:
    """Returns linguist's spelling of a language's name; an unknown name is returned as it is."""
    lower = name.strip().lower()
    return SPELLINGS.get(lower) or _linguist_names().get(lower) or name.strip()


def comment_mark(language: str) -> str:
    """Returns the text that starts a comment of one line in a language of notebooks."""
    if language in ("JavaScript", "TypeScript", "C++", "C", "Java", "C#", "F#", "Go", "Rust",
                    "Scala", "Kotlin", "Swift", "Groovy", "PHP"):  # fmt: skip
        return "//"
    if language in ("SQL", "Haskell", "Lua", "PLpgSQL"):
        return "--"
    return {"MATLAB": "%", "Erlang": "%", "Prolog": "%", "Clojure": ";;", "Scheme": ";;"}.get(
        language, "#"
    )


@functools.lru_cache(maxsize=2**16)
def _by_name(name: str) -> tuple[str, tuple[tuple[str, re.Pattern | None], ...]]:
    """Returns the language that a file's name decides, or else "" and the rules for its content."""
    file_names, extensions = _tables()
    if name in file_names:
        return file_names[name], ()
    if name.split(".")[0] in ("Dockerfile", "Makefile"):  # Dockerfile.dev, Makefile.linux
        return name.split(".")[0], ()
    suffixes = PurePosixPath(name).suffixes
    # The longest extension first: x.cmake.in is CMake.
    for start in range(len(suffixes)):
        extension = "".join(suffixes[start:]).lower()
        if extension in AMBIGUOUS:
            return "", _compiled(extension)
        if extension in extensions:
            return extensions[extension], ()
    return "", ()


@functools.cache
def _compiled(extension: str) -> tuple[tuple[str, re.Pattern | None], ...]:
    # Compiled on first use: most corpora have a few of these extensions only.
    compiled: list[tuple[str, re.Pattern | None]] = []
    for language, pattern in AMBIGUOUS[extension]:
        compiled.append((language, re.compile(pattern, re.MULTILINE) if pattern else None))
    return tuple(compiled)


def _by_content(rules: tuple[tuple[str, re.Pattern | None], ...], text: str) -> str:
    for language, pattern in rules:
        if pattern is None or pattern.search(text):
            return language
    return ""


def _by_shebang(text: str) -> str:
    # Only the first line, of at most CONSIDERED characters: a minified file may be one long line.
    match = _SHEBANG.match(text[: text.find("\n")] if "\n" in text else text[:CONSIDERED])
    if not match:
        return ""
    program, arguments = match[1].rsplit("/", 1)[-1], (match[2] or "").split()
    # `env` runs the first word that is neither an option nor NAME=VALUE.
    if program == "env":
        words = [word for word in arguments if not _ASSIGNMENT_OR_FLAG.match(word)]
        program = words[0].rsplit("/", 1)[-1] if words else ""
    # python3.11 and perl5 name the program with its version.
    return INTERPRETERS.get(program) or INTERPRETERS.get(program.rstrip("0123456789.-"), "")


@functools.cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    """Returns the languages by file name, and by extension in lower case with its dot."""
    from pygments.lexers import get_all_lexers

    file_names: dict[str, str] = {}
    extensions: dict[str, str] = {}
    shared: set[str] = set()  # extensions of several lexers: which is meant would be a guess
    for name, _, patterns, _ in get_all_lexers(plugins=False):
        for pattern in patterns:
            language = SPELLINGS.get(name.lower(), name)
            ending = pattern[1:].lower()
            if not set(pattern) & _WILDCARDS:
                file_names.setdefault(pattern, language)
            elif set(ending) & _WILDCARDS or not ending.startswith("."):
                continue  # a pattern such as *.[1-9]
            elif extensions.setdefault(ending, language) != language:
                shared.add(ending)
    for extension in shared:
        del extensions[extension]
    # The table of this project comes last and overrides pygments.
    for line in FILES.strip().splitlines():
        language, _, files = line.partition(":")
        endings, _, names = files.partition("|")
        extensions.update(dict.fromkeys([f".{ending}" for ending in endings.split()], language))
        file_names.update(dict.fromkeys(names.split(), language))
    return file_names, extensions


@functools.cache
def _linguist_names() -> dict[str, str]:
    """Returns the languages of the table by their name in lower case."""
    names: dict[str, str] = {}
    for line in FILES.strip().splitlines():
        language = line.partition(":")[0]
        names[language.lower()] = language
    for rules in AMBIGUOUS.values():
        for language, _ in rules:
            names[language.lower()] = language
    return names
