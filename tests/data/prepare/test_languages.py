"""Languages as linguist names them."""

import time

import pytest

from codellama_jax.data.prepare.filters import languages
from codellama_jax.data.prepare.filters.languages import canonical, language_of

# By the file's name alone.
NAMES = {
    "a/b/setup.py": "Python",
    "stub.pyi": "Python",
    "x.cpp": "C++",
    "x.hpp": "C++",
    "x.cc": "C++",
    "x.c": "C",
    "X.JAVA": "Java",
    "x.js": "JavaScript",
    "x.mjs": "JavaScript",
    "x.jsx": "JavaScript",
    "x.tsx": "TypeScript",
    "x.go": "Go",
    "x.html": "HTML",
    "x.sh": "Shell",
    "x.css": "CSS",
    "x.tex": "TeX",
    "x.kt": "Kotlin",
    "x.scala": "Scala",
    "x.pas": "Pascal",
    "x.f90": "Fortran",
    "x.cu": "Cuda",
    "x.csx": "C#",
    "x.ipynb": "Jupyter Notebook",
    "x.rb": "Ruby",
    "x.lua": "Lua",
    "x.jl": "Julia",
    "x.hs": "Haskell",
    "x.ps1": "PowerShell",
    "x.bat": "Batchfile",
    "x.asm": "Assembly",
    "x.cmake": "CMake",
    "CMakeLists.txt": "CMake",
    "Dockerfile": "Dockerfile",
    "Dockerfile.dev": "Dockerfile",
    "Makefile": "Makefile",
    "x.proto": "Protocol Buffer",
    "x.yml": "YAML",
    "x.json": "JSON",
    "x.vb": "Visual Basic .NET",
    "x.vue": "Vue",
    "x.rst": "reStructuredText",
    "x.Rmd": "RMarkdown",
    "x.zig": "Zig",
    "x.coq-of-nothing": "",
    "noextension": "",
    "": "",
}
# By name and content.
CONTENTS = [
    ("a.h", "#ifndef A_H\nint f(void);\n#endif\n", "C"),
    ("a.h", "#include <vector>\nint f();\n", "C++"),
    ("a.h", "namespace a {\nclass B;\n}\n", "C++"),
    ("a.h", "@interface A : NSObject\n@end\n", "Objective-C"),
    ("a.m", "#import <Foundation/Foundation.h>\n@implementation A\n@end\n", "Objective-C"),
    ("a.m", "function y = f(x)\n% doubles\ny = 2*x;\nend\n", "MATLAB"),
    ("a.m", "f[x_] := x^2 (* square *)\n", "Wolfram Language"),
    ("a.m", ":- module a.\n:- interface.\n", "Mercury"),
    ("a.pl", "#!/usr/bin/perl\nprint 1;\n", "Perl"),
    ("a.pl", "use strict;\nmy $x = 1;\n", "Perl"),
    ("a.pl", "parent(X, Y) :- child(Y, X).\n", "Prolog"),
    ("a.ts", "const x: number = 1;\n", "TypeScript"),
    ("a.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS></TS>\n', "XML"),
    ("a.sql", "SELECT 1;\n", "SQL"),
    (
        "a.sql",
        "CREATE FUNCTION f() RETURNS trigger AS $$ BEGIN END $$ LANGUAGE plpgsql;\n",
        "PLpgSQL",
    ),
    ("a.sql", "SELECT 1\nGO\nDECLARE @x INT\n", "TSQL"),
    ("a.sql", "x VARCHAR2(10);\n", "PLSQL"),
    ("a.v", "module top(input a);\nendmodule\n", "Verilog"),
    ("a.v", "Theorem a : 1 = 1.\nProof. reflexivity. Qed.\n", "Rocq Prover"),
    ("a.v", "fn main() {\n\tprintln('a')\n}\n", "V"),
    ("a.cls", "\\NeedsTeXFormat{LaTeX2e}\n\\ProvidesClass{a}\n", "TeX"),
    ("a.cls", "public with sharing class A {}\n", "Apex"),
    ("a.cls", 'VERSION 1.0 CLASS\nAttribute VB_Name = "A"\n', "VBA"),
    ("a.inc", "<?php echo 1;\n", "PHP"),
    ("a.inc", "#include <stdio.h>\n", "C++"),
    ("a.inc", "procedure Foo;\nbegin\nend;\n", "Pascal"),
    ("a.php", "<?hh // strict\n", "Hack"),
    ("a.php", "<?php echo 1;\n", "PHP"),
    ("a.md", "# Title\n", "Markdown"),
    ("a.md", "(define_insn x)\n", "GCC Machine Description"),
    ("a.r", "x <- c(1, 2)\n", "R"),
    ("a.r", "REBOL [title: 1]\n", "Rebol"),
    ("a.rs", "fn main() {}\n", "Rust"),
    ("a.rs", "#pragma version(1)\n", "RenderScript"),
    ("a.fs", "module A\nlet x = 1\n", "F#"),
    ("a.fs", ": square dup * ;\n", "Forth"),
    ("a.d", "import std.stdio;\nvoid main() {}\n", "D"),
    ("a.d", "main.o: main.c a.h\n", "Makefile"),
    ("a.mm", "@implementation A\n@end\n", "Objective-C++"),
    ("a.pp", "unit A;\ninterface\n", "Pascal"),
    ("a.pp", "class ntp {\n  package { 'ntp': }\n}\n", "Puppet"),
    ("run", "#!/usr/bin/env python3\nprint(1)\n", "Python"),
    ("run", "#!/usr/bin/env -S FOO=1 node --flag\n", "JavaScript"),
    ("run", "#! /usr/local/bin/python2.7 -u\n", "Python"),
    ("run", "#!/bin/bash\n", "Shell"),
    ("run", "#!/bin/unknown\n", ""),
    ("run", "#!", ""),
    ("run", "plain text\n", ""),
]


@pytest.mark.parametrize("path, language", NAMES.items())
def test_by_name(path, language):
    assert language_of(path, "some text\n") == language


@pytest.mark.parametrize("path, text, language", CONTENTS)
def test_by_content(path, text, language):
    assert language_of(path, text) == language


def test_only_the_start_of_a_text_is_searched():
    filler = "x\n" * languages.CONSIDERED
    assert language_of("a.h", filler + "class A {\n};\n") == "C"


@pytest.mark.parametrize(
    "extension, rules", [(key, rules) for key, rules in languages.AMBIGUOUS.items()]
)
def test_rules_end_with_a_language_for_every_other_text(extension, rules):
    assert extension == extension.lower() and rules[-1][1] == ""
    assert language_of(f"a{extension}", "\x01") == rules[-1][0]


@pytest.mark.parametrize("extension", languages.AMBIGUOUS)
def test_no_text_takes_long(extension):
    """An expression of quadratic time takes seconds, one of linear time milliseconds."""
    pieces = [
        "\n",
        " ",
        "a",
        "(",
        "[[",
        "case ",
        "a.o ",
        "class a",
        "a = ",
        "a:",
        "-",
        "<a ",
        "a\n",
    ]
    start = time.process_time()
    for piece in pieces:
        for before in ("", "class "):
            language_of(f"a{extension}", before + piece * languages.CONSIDERED)
    assert time.process_time() - start < 0.2 * 2 * len(pieces)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("python", "Python"),
        ("PYTHON", "Python"),
        ("cpp", "C++"),
        ("c-sharp", "C#"),
        ("typescript", "TypeScript"),
        ("Jupyter Notebook", "Jupyter Notebook"),
        ("Fortran Free Form", "Fortran"),
        ("Klingon", "Klingon"),
    ],
)
def test_canonical_names(name, expected):
    assert canonical(name) == expected
