"""The rows that infilling adds to a vocabulary."""

# <PRE>, <MID>, <SUF> and <EOT>, and 12 more that are not used: Code Llama's vocabulary with infilling
# has 32,016 rows for Llama 2's 32,000 pieces.
SENTINEL_ROWS = 16
