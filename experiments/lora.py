"""LoRA: tunes an imported model on conversations, with adapters in the place of its weights.

Claim     Hu et al. 2021: adapters of a small rank reach the quality of tuning all weights.
Expected  a lower loss on held-out conversations after a few steps; nothing else is claimed here.
Cost      `launch.py plan lora --scale smollm2` prints it. On a laptop 20 steps take minutes, and a
          checkpoint 59 MB.
Command   python launch.py import gguf:SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2
          python launch.py prepare conversations.jsonl --out data/conversations --split-by file
          python launch.py run experiments/lora.py --tune.init run:runs/smollm2
          --tokenizer.path runs/smollm2/tokenizer.json
          --corpus.others.conversations prepared:data/conversations

The paper gives AdamW with a linear schedule and rates of 1e-4 to 2e-3 by task; chosen here are 2e-4
with a cosine, no weight decay, and adapters of all matrices, as QLoRA has them (Dettmers et al.
2023). At scale 7b the frozen weights are those of Code Llama 7B, in int8.
"""

from codellama_jax.config import (
    CorpusConfig,
    DataConfig,
    Experiment,
    LoraConfig,
    MixtureConfig,
    OptimizerConfig,
    Stage,
    TokenizerConfig,
)
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.models.llama.sizes import CODE_LLAMA, choose
from experiments import recipe

SMOLLM2 = LlamaConfig(
    49_152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    compute_dtype="float32",
    tied_embeddings=True,
    rope_theta=1e5,
)
MODELS = {"smollm2": SMOLLM2, "7b": recipe.with_larger_base(CODE_LLAMA["7b"])}
MIXTURE = MixtureConfig(others={"conversations": 1.0})
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def experiment(scale: str = "smollm2") -> Experiment:
    """Returns the stage that follows an imported model."""
    is_small = scale == "smollm2"
    tune = Stage(
        # A placeholder: --tune.init names the imported model.
        init="run:model",
        model=choose(MODELS, scale),
        data=DataConfig(
            seq_len=512 if is_small else 2048,
            batch_size=8 if is_small else 16,
            mixture=MIXTURE,
            chat="llama2",
        ),
        optimizer=OptimizerConfig(peak_lr=2e-4, warmup_steps=5, weight_decay=0.0),
        steps=20 if is_small else 2000,
        # Gradients of 16 parts are summed, so that the activations of one sequence fit a device.
        micro_batches=1 if is_small else 16,
        eval_rows=8 if is_small else 32,
        eval_every=10 if is_small else 500,
        checkpoint_every=10 if is_small else 500,
        log_every=1 if is_small else 10,
        # alpha / rank is 1: the update is B A itself. Only the large model is worth quantizing.
        lora=LoraConfig(
            rank=16, alpha=16.0, targets=TARGETS, quantize_base="none" if is_small else "int8"
        ),
    )
    return Experiment(
        "lora",
        scale,
        {"main": {"tune": tune}},
        TokenizerConfig("tokenizer.json"),
        CorpusConfig(others={"conversations": "conversations.jsonl"}),
    )
