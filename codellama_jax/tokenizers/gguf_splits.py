"""How text is split before byte-level BPE, by the names that GGUF files have for it.

A GGUF file has a name, `tokenizer.ggml.pre`, where a tokenizer.json has regular expressions.
llama.cpp's src/llama-vocab.cpp lists which names split in which way.
"""

from __future__ import annotations

from typing import Any

from codellama_jax.errors import UserError
from codellama_jax.system.settings import Settings
from codellama_jax.tokenizers import byte_level


def _split(*patterns: str, digits: bool = False) -> dict[str, Any]:
    """Returns a pre_tokenizer of tokenizer.json that splits at each pattern, one after the other.

    `digits` splits off each digit after them.
    """
    steps: list[dict[str, Any]] = []
    for pattern in patterns:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        steps.append({**split, "invert": False})
    if digits:
        steps.append({"type": "Digits", "individual_digits": True})
    # The text is split by then: this step only writes bytes as characters.
    steps.append({**byte_level.pre_tokenizer("gpt2"), "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


# The regular expressions of Llama 3 and Qwen2 differ in the length of numbers.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = byte_level.pre_tokenizer("gpt2")
_STARCODER = byte_level.pre_tokenizer("starcoder")
_LLAMA3 = _split(_CONTRACTIONS + r"\p{N}{1,3}" + _OTHERS)
_QWEN2 = _split(_CONTRACTIONS + r"\p{N}" + _OTHERS)
_DEEPSEEK = _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", digits=True)
# Of several names with one rule, the first is written.
SPLITS: dict[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "starcoder": _STARCODER,
    "smollm": _STARCODER,
    "refact": _STARCODER,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "deepseek-coder": _DEEPSEEK,
}
# Of these, a part of the text that is one token stays one, with or without merges to it.
UNMERGED = ("llama-bpe", "llama3", "llama-v3", "falcon3")
# Of these, texts begin with BOS where the file has no key for it.
WITH_BOS = UNMERGED


def pre_tokenizer(settings: Settings) -> dict[str, Any]:
    """Returns the pre_tokenizer of tokenizer.json for the split that `pre` names.

    Raises UserError listing the names for an unknown or missing one.
    """
    name = settings.values.get("pre")
    if name not in list(SPLITS):  # a list: a value of the file may not be hashable
        names = ", ".join(SPLITS)
        raise settings.error("pre", f"one of {names}, or pass the tokenizer with --tokenizer")
    return SPLITS[name]


def name_of(spec: dict[str, Any], where: str) -> str:
    """Returns the name of the split of a tokenizer.json.

    Raises UserError, which begins with `where`, if llama.cpp has no name for it.
    """
    is_unmerged = bool(spec["model"].get("ignore_merges"))
    # The regular expressions are compared as they are: that two different ones split all texts
    # alike cannot be decided.
    for name, split in SPLITS.items():
        is_same = _decisive(split) == _decisive(spec["pre_tokenizer"])
        if is_same and is_unmerged == (name in UNMERGED):
            return name
    fix = "export --to hf and convert that with llama.cpp's convert_hf_to_gguf.py"
    raise UserError(f"{where} splits text in a way that GGUF has no known name for: {fix}")


def _decisive(step: Any) -> Any:
    """Returns a pre_tokenizer without the fields that do not change the split."""
    if isinstance(step, list):
        return [_decisive(inner) for inner in step]
    if not isinstance(step, dict):
        return step
    kept = {}
    for key, value in step.items():
        if key not in ("trim_offsets", "invert"):
            kept[key] = _decisive(value)
    return kept
