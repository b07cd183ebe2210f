"""Whether texts begin with BOS, as a tokenizer_config.json of transformers decides it."""

from __future__ import annotations

from etils import epath

from codellama_jax.system.settings import Settings, read_settings

CONFIG = "tokenizer_config.json"
# Classes of transformers 4 that decide about BOS by add_bos_token and not by tokenizer.json.
DECIDING = (
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
)


def bos_setting(settings: Settings) -> bool | None:
    """Returns add_bos_token, None if it is missing or of a class that ignores it.

    Raises UserError for a value that is not true or false.
    """
    if settings.values.get("tokenizer_class") not in DECIDING:
        return None
    return settings.flag("add_bos_token") if settings.has("add_bos_token") else None


def begins_without_bos(file: epath.Path) -> bool:
    """Returns whether the settings beside a tokenizer.model begin texts without BOS."""
    config = file.parent / CONFIG
    return config.exists() and bos_setting(read_settings(config)) is False
