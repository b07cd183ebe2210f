"""The contents of a data card, stored as JSON."""

import pytest

from codellama_jax.data.prepare.card import (
    Amount,
    CardData,
    Cluster,
    Duplicates,
    Language,
    Source,
    Split,
    TokenOverlap,
    length_bin,
    load_card,
    save_card,
    token_overlaps,
)
from codellama_jax.data.prepare.contamination_stage import RuleCount, TokenShare
from codellama_jax.errors import UserError


@pytest.fixture
def card():
    return CardData(
        name="code",
        command="prepare",
        policy="codex",
        changes={"max_line": 7, "languages": ["C"]},
        versions={"numpy": "2"},
        sources=(Source("a.jsonl", Amount(2, 30)),),
        reasons={"long_line": Amount(1, 10)},
        languages={"C": Language(Amount(1, 20), Amount(1, 10))},
        lengths={"kept": {"16": 1}},
        licenses={"": Amount(1, 20)},
        splits={"train": Split(Amount(1, 20), 1, 1, 30, {"llama": 8})},
        seconds={"documents": 1.5},
        duplicates={"near": Duplicates(Amount(1, 5), {"2": 1}, (Cluster(2, ("a", "b")),))},
        contamination=(RuleCount("mbpp", "ngrams", "remove", 1, 2, 1),),
        token_overlaps=(TokenOverlap("mbpp", 1, 1, 0, 10, 1),),
    )


def test_a_card_comes_back_from_its_file(tmp_path, card):
    save_card(tmp_path / "card.json", card)
    assert load_card(tmp_path / "card.json") == card


def test_a_file_of_another_form_is_named(tmp_path):
    (tmp_path / "card.json").write_text('{"name": "x", "size": 1}')
    with pytest.raises(UserError, match=r"card.json: .*no field size.*; run prepare again"):
        load_card(tmp_path / "card.json")


@pytest.mark.parametrize(
    "characters, bound", [(0, "0"), (1, "1"), (2, "2"), (3, "2"), (1023, "512"), (1024, "1024")]
)
def test_bins_of_lengths_begin_at_powers_of_two(characters, bound):
    assert length_bin(characters) == bound


def test_tasks_are_clean_dirty_or_between():
    shares = [
        TokenShare("a", "clean", 100, 19),
        TokenShare("a", "between", 100, 20),
        TokenShare("a", "dirty", 100, 80),
        TokenShare("a", "without tokens", 0, 0),
        TokenShare("b", "dirty", 10, 10),
    ]
    assert token_overlaps(shares) == (
        TokenOverlap("a", tasks=3, clean=1, dirty=1, tokens=300, contaminated=119),
        TokenOverlap("b", tasks=1, clean=0, dirty=1, tokens=10, contaminated=10),
    )
