"""The literal table of CodeGeeX's language tags."""

import pytest

from codellama_jax.errors import UserError
from codellama_jax.tokenizers.language_tags import TAGS, language_tag


def test_the_tags_that_follow_no_rule():
    irregular = {
        "Fortran": "!language: Fortran",
        "Delphi": "{language: Delphi}",
        "VB": "' language: Visual Basic",
        "Swift": "// language: swift",
        "HTML": "<!--language: HTML-->",
        "css": "/* language: CSS */",
        "cpp": "// language: C++",
        "Python": "# language: Python",
    }
    assert {name: language_tag(name) for name in irregular} == irregular
    assert len(set(TAGS.values())) == len(TAGS)
    with pytest.raises(UserError, match="language 'Klingon' has no tag: it must be one of abap"):
        language_tag("Klingon")


def test_names_of_linguist_have_the_tag_of_their_language():
    assert language_tag("Common Lisp") == "; language: Lisp"
    assert language_tag("Visual Basic .NET") == "' language: Visual Basic"
