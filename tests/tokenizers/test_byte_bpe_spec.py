"""tokenizer.json as published models have it: SmolLM2, Llama 3, Qwen."""

import byte_bpe_cases
import pytest

from codellama_jax.tokenizers import files

# Line ends, runs of digits and spaces, contractions, and text that spells special tokens.
HARD = "it's 12345 DON'T\r\n\n\t x1 é ü 漢字 🙂  \n<|endoftext|> <|im_start|><tool_call>   "
IDS = {  # BOS, EOS, prefix, suffix, middle, EOT
    "smollm2": (1, 2, 607, 608, 609, 610),
    "llama3": (600, 601, 610, 611, 612, 613),
    "qwen": (600, 600, 605, 607, 606, 600),
}


@pytest.fixture(scope="module", params=byte_bpe_cases.STYLES)
def style(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    byte_bpe_cases.write_style(request.param, folder)
    return request.param, files.load(folder)


def test_ids_are_those_of_the_other_software(style):
    name, ours = style
    theirs = byte_bpe_cases.published_style(name)
    text = byte_bpe_cases.TEXTS[0] + "it's 12345 DON'T\r\n\n\t x1 é ü 漢字 🙂  \n   "
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    # With BOS where their file adds it.
    assert ours.prompt(text) == theirs.encode(text).ids
    assert ours.prompt("") == [ours.bos_id]


def test_text_that_spells_special_tokens_stays_text(style):
    _, ours = style
    ids = ours.encode(HARD)
    assert ours.decode(ids) == HARD
    special = {ours.bos_id, ours.eos_id, ours.pre_id, ours.suf_id, ours.mid_id, ours.eot_id}
    assert not special & set(ids)


def test_special_ids(style):
    name, ours = style
    found = (ours.bos_id, ours.eos_id, ours.pre_id, ours.suf_id, ours.mid_id, ours.eot_id)
    assert found == IDS[name]
    # Qwen's vocabulary has infilling tokens; the others get sentinels after their last entry.
    assert ours.vocab_size - ours.pieces == (0 if name == "qwen" else 16)
    assert bool(ours.limits) == (name == "qwen")  # its normalizer changes decomposed characters
