"""The comment with which CodeGeeX begins every document and prompt: `# language: Python`.

The table is literal, because the published tags follow no rule: see Fortran, Delphi, HTML, Swift.
Source: the published code of CodeGeeX (github.com/THUDM/CodeGeeX) and of CodeGeeX2.
"""

from __future__ import annotations

from codellama_jax.errors import UserError

TAGS = {
    "abap": "* language: Abap",
    "actionscript": "// language: ActionScript",
    "assembly": "; language: Assembly",
    "basic": "' language: Basic",
    "c": "// language: C",
    "c#": "// language: C#",
    "c++": "// language: C++",
    "clojure": "; language: Clojure",
    "cobol": "// language: Cobol",
    "css": "/* language: CSS */",
    "cuda": "// language: Cuda",
    "dart": "// language: Dart",
    "delphi": "{language: Delphi}",
    "elixir": "# language: Elixir",
    "erlang": "% language: Erlang",
    "excel": "' language: Excel",
    "fortran": "!language: Fortran",
    "gdscript": "# language: GDScript",
    "go": "// language: Go",
    "groovy": "// language: Groovy",
    "haskell": "-- language: Haskell",
    "html": "<!--language: HTML-->",
    "java": "// language: Java",
    "javascript": "// language: JavaScript",
    "julia": "# language: Julia",
    "kotlin": "// language: Kotlin",
    "lean": "-- language: Lean",
    "lisp": "; language: Lisp",
    "lua": "// language: Lua",
    "markdown": "<!--language: Markdown-->",
    "matlab": "% language: Matlab",
    "objective-c": "// language: Objective-C",
    "objective-c++": "// language: Objective-C++",
    "pascal": "// language: Pascal",
    "perl": "# language: Perl",
    "php": "// language: PHP",
    "powershell": "# language: PowerShell",
    "prolog": "% language: Prolog",
    "python": "# language: Python",
    "r": "# language: R",
    "ruby": "# language: Ruby",
    "rust": "// language: Rust",
    "scala": "// language: Scala",
    "scheme": "; language: Scheme",
    "shell": "# language: Shell",
    "solidity": "// language: Solidity",
    "sql": "-- language: SQL",
    "swift": "// language: swift",
    "tex": "% language: TeX",
    "typescript": "// language: TypeScript",
    "visual basic": "' language: Visual Basic",
    "vue": "<!--language: Vue-->",
}
SHORT = {"cpp": "c++", "js": "javascript", "ts": "typescript", "vb": "visual basic"}
# Names of linguist, which data/prepare/filters/languages.py returns.
SHORT |= {"common lisp": "lisp", "emacs lisp": "lisp", "visual basic .net": "visual basic"}


def language_tag(language: str) -> str:
    """Returns the tag of a language, without a newline. Raises UserError for one without a tag."""
    name = language.lower()
    name = SHORT.get(name, name)
    if name not in TAGS:
        raise UserError(f"language {language!r} has no tag: it must be one of {', '.join(TAGS)}")
    return TAGS[name]
