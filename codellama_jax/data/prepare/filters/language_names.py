"""The names of languages as GitHub's linguist spells them, with their files and interpreters.

Only the languages for which linguist and pygments differ, or that a corpus of code names often;
`languages.py` takes all others from pygments. Linguist's groups count as one language: TSX as
TypeScript, free-form Fortran as Fortran, Unix assembly as Assembly, as in The Stack.
"""

# One language per line: its extensions, then the names of its files after "|". A long line is
# repeated. For an extension that several languages share, AMBIGUOUS of languages.py decides.
FILES = """
ActionScript: as
Ada: adb ada ads
Agda: agda
ANTLR: g4
AppleScript: applescript scpt
AsciiDoc: adoc asciidoc
ASP.NET: asax ascx ashx asmx aspx axd
Assembly: asm a51 nasm s
Awk: awk auk gawk mawk nawk
Batchfile: bat cmd
BibTeX: bib bibtex
Bluespec: bsv
C: c cats idc
C#: cs csx linq
C++: cpp c++ cc cppm cp cxx h++ hh hpp hxx inl ino ipp ixx tcc tpp txx
Clojure: clj boot cljc cljs cljx
CMake: cmake cmake.in | CMakeLists.txt
COBOL: cob cbl ccp cobol cpy
CoffeeScript: coffee cjsx iced | Cakefile
Common Lisp: lisp lsp asd sexp
Crystal: cr
CSS: css
CSV: csv
Cuda: cu cuh
Cython: pyx pxd pxi
D: d di
Dart: dart
Diff: diff patch
Dockerfile: dockerfile containerfile | Dockerfile Containerfile
Elixir: ex exs | mix.lock
Elm: elm
Emacs Lisp: el emacs
Erlang: erl app.src hrl xrl yrl | rebar.config rebar.lock
F#: fs fsi fsx
fish: fish
Forth: 4th fth forth
Fortran: f for f77 f90 f95 f03 f08 fpp
GDScript: gd
Gherkin: feature story
GLSL: glsl frag geom vert tesc tese comp vsh fsh fshader vshader
Go: go
Go Checksums: | go.sum go.work.sum
Go Module: | go.mod
Gradle: gradle
GraphQL: graphql gql graphqls
Graphviz (DOT): dot gv
Groovy: groovy grt gtpl gvy | Jenkinsfile
Hack: hack hhi
Handlebars: handlebars hbs
Haskell: hs hs-boot hsc
HCL: hcl nomad tf tfvars
HLSL: hlsl cginc fxh hlsli
HTML: html htm xht xhtml
HTML+ERB: erb rhtml
IDL: pro
Idris: idr lidr
INI: ini cfg cnf desktop-file service socket target timer | setup.cfg
Isabelle: thy
Java: java jav
Java Properties: properties
Java Server Pages: jsp tag
JavaScript: js cjs es6 jsm jsx mjs pac xsjs | Jakefile
Jinja: jinja j2 jinja2
JSON:  json avsc geojson gltf har jsonl topojson webapp webmanifest tfstate
JSON: |  Pipfile.lock composer.lock
JSONLD: jsonld
Julia: jl
Jupyter Notebook: ipynb
Kotlin: kt ktm kts
Less: less
Lex: lex
Literate Agda: lagda
Literate CoffeeScript: litcoffee coffee.md
Literate Haskell: lhs
LLVM: ll
Lua: lua nse rockspec wlua
M4: m4 | configure.ac
Makefile:  mak make makefile mk mkfile
Makefile: |  Makefile GNUmakefile BSDmakefile Kbuild Makefile.am Makefile.in
Markdown: md livemd markdown mdown mdwn mkd mkdn mkdown ronn
MATLAB: matlab
MDX: mdx
Meson: | meson.build meson_options.txt
Nim: nim nimble nims
Nix: nix
Objective-C++: mm
OCaml: ml eliom ml4 mli mll mly
OpenCL: opencl
Org: org
Pascal: pas dfm dpr lpr pascal pp
Perl: pm perl ph plx psgi t al | Makefile.PL cpanfile
PHP: php phtml php3 php4 php5 phps phpt
PLpgSQL: pgsql
PLSQL: pls pkb pks plb plsql
PowerShell: ps1 psd1 psm1
Prolog: prolog yap
Protocol Buffer: proto
Pug: jade pug
Python: py gyp gypi py3 pyi pyp pyt pyw wsgi | SConscript SConstruct wscript
QML: qml qbs
R: r rd rsx | .Rprofile expr-dist
Racket: rkt rktd rktl scrbl
Raku: 6pl 6pm nqp p6 pl6 pm6 raku rakumod
reStructuredText: rst rest
RMarkdown: qmd rmd
Roff: roff man me tmac
Ruby:  rb builder gemspec jbuilder podspec rake rbi rbw rbx ru ruby
Ruby: |  Gemfile Rakefile Podfile Vagrantfile Brewfile Fastfile Guardfile
Rust: rs
SAS: sas
Sass: sass
Scala: scala sbt sc
Scheme: scm sld sps ss sch
SCSS: scss
Shell: sh bash bats ksh sbatch tmux zsh zsh-theme | PKGBUILD gradlew configure
Smalltalk: st
Solidity: sol
SPARQL: sparql rq
SQL: sql ddl prc mysql tab udf viw
Stan: stan
Standard ML: fun sig sml
Starlark: bzl star | BUCK BUILD BUILD.bazel MODULE.bazel WORKSPACE WORKSPACE.bazel Tiltfile
Stata: do ado doh ihlp mata sthlp
Stylus: styl
SVG: svg
Svelte: svelte
Swift: swift
SystemVerilog: sv svh vh
Tcl: tcl adp tm xdc sdc
Tcsh: tcsh csh
TeX: tex aux bbx cbx dtx ins ltx mkii mkiv mkvi sty toc
Text: txt | LICENSE COPYING INSTALL NEWS README CITATION
Thrift: thrift
TOML: toml | Cargo.lock Pipfile poetry.lock uv.lock pdm.lock
TypeScript: cts mts tsx
Typst: typ
Vala: vala vapi
VBA: vba
Verilog: veo
VHDL: vhdl vhd vhf vhi vho vhs vht vhw
Vim script: vim vmb | vimrc gvimrc
Visual Basic .NET: vb vbhtml
Vue: vue
WebAssembly: wast wat
WGSL: wgsl
XML:  xml axml csproj fsproj fxml iml plist props proj resx rss storyboard targets vbproj
XML: vcxproj wsdl xaml xib xlf xliff xmi xsd xul
XML: |  pom.xml
XSLT: xsl xslt
Yacc: y yacc yy
YAML: yaml yml reek rviz sublime-syntax | .clang-format yarn.lock CITATION.cff
Zig: zig zig.zon
"""

# The programs that a first line "#!/usr/bin/env PROGRAM" names; a version at the end is ignored.
INTERPRETERS = {
    "ash": "Shell",
    "awk": "Awk",
    "bash": "Shell",
    "bun": "TypeScript",
    "coffee": "CoffeeScript",
    "crystal": "Crystal",
    "csh": "Tcsh",
    "dash": "Shell",
    "deno": "TypeScript",
    "elixir": "Elixir",
    "escript": "Erlang",
    "fish": "fish",
    "gawk": "Awk",
    "groovy": "Groovy",
    "guile": "Scheme",
    "instantfpc": "Pascal",
    "julia": "Julia",
    "ksh": "Shell",
    "lua": "Lua",
    "luajit": "Lua",
    "make": "Makefile",
    "node": "JavaScript",
    "nodejs": "JavaScript",
    "ocaml": "OCaml",
    "osascript": "AppleScript",
    "perl": "Perl",
    "php": "PHP",
    "pwsh": "PowerShell",
    "pypy": "Python",
    "python": "Python",
    "racket": "Racket",
    "raku": "Raku",
    "Rscript": "R",
    "ruby": "Ruby",
    "runhaskell": "Haskell",
    "sbcl": "Common Lisp",
    "scala": "Scala",
    "sh": "Shell",
    "swipl": "Prolog",
    "tclsh": "Tcl",
    "tcsh": "Tcsh",
    "ts-node": "TypeScript",
    "wish": "Tcl",
    "zsh": "Shell",
}

# Names that pygments, data sets or notebooks spell in another way than linguist, in lower case.
SPELLINGS = {
    "autohotkey": "AutoHotkey",
    "bash": "Shell",
    "bash session": "ShellSession",
    "c-sharp": "C#",
    "coldfusion cfc": "ColdFusion CFC",
    "coldfusion html": "ColdFusion",
    "cpp": "C++",
    "csharp": "C#",
    "delphi": "Pascal",
    "desktop file": "desktop",
    "docker": "Dockerfile",
    "emacslisp": "Emacs Lisp",
    "fortran free form": "Fortran",
    "fortranfixed": "Fortran",
    "foxpro": "xBase",
    "fsharp": "F#",
    "fstar": "F*",
    "g-code": "G-code",
    "gas": "Assembly",
    "golang": "Go",
    "graphviz": "Graphviz (DOT)",
    "groff": "Roff",
    "html+twig": "Twig",
    "hxml": "HXML",
    "igor": "IGOR Pro",
    "js": "JavaScript",
    "liquid": "Liquid",
    "mathematica": "Wolfram Language",
    "matlab": "MATLAB",
    "mql": "MQL4",
    "nasm": "Assembly",
    "nginx configuration file": "Nginx",
    "nimrod": "Nim",
    "objc": "Objective-C",
    "odin": "Odin",
    "ooc": "ooc",
    "perl6": "Raku",
    "pig": "PigLatin",
    "pkgconfig": "pkg-config",
    "povray": "POV-Ray SDL",
    "py": "Python",
    "q": "q",
    "reasonml": "Reason",
    "rebol": "Rebol",
    "rego": "Open Policy Agent",
    "restructuredtext": "reStructuredText",
    "rexx": "REXX",
    "rpmspec": "RPM Spec",
    "sed": "sed",
    "sh": "Shell",
    "systemd": "INI",
    "terraform": "HCL",
    "text only": "Text",
    "ts": "TypeScript",
    "tsx": "TypeScript",
    "unix assembly": "Assembly",
    "vb.net": "Visual Basic .NET",
    "vim script": "Vim script",
    "viml": "Vim script",
    "visual basic": "Visual Basic .NET",
    "web idl": "WebIDL",
    "zone": "DNS Zone",
}
