"""The number of vocabulary entries that infilling adds."""

# <PRE>, <SUF>, <MID>, <EOT> and 12 entries that are not used: Code Llama's vocabulary with
# infilling has 32,016 entries, Llama 2's has 32,000.
SENTINEL_ROWS = 16


def appended_rows(kind: str) -> int:
    """Returns the number of vocabulary entries that infilling adds to a trained tokenizer.

    `kind` is that of TokenizerConfig. StarCoder's special tokens include the sentinels.
    """
    return 0 if kind == "starcoder" else SENTINEL_ROWS
