"""Against transformers and torch, which read and write the same files by code that is not ours. Needs the extra `oracle`."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

GQA = {"num_attention_heads": 8, "num_key_value_heads": 2}
CASES = {  # what of the published models differs, each value at least once
    "mha": {"vocab_size": 32_000},
    "gqa": {**GQA, "vocab_size": 32_016, "rope_theta": 1e6},
    "tied": {**GQA, "vocab_size": 32_000, "tie_word_embeddings": True, "files": 3},
    "scaled": {"vocab_size": 32_016, "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "files": 3},
    "bf16": {**GQA, "vocab_size": 32_016, "rope_theta": 1e6, "dtype": "bfloat16", "files": 3},
    "bf16_tied": {"vocab_size": 32_016, "tie_word_embeddings": True, "dtype": "bfloat16"},
}


def make(folder, seed=0, files=1, dtype="float32", **config):
    """Saves a random model, with weights large enough that its logits differ, and returns it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "rms_norm_eps": 1e-5}
    made = transformers.LlamaConfig(**{**sizes, "max_position_embeddings": 8192, "initializer_range": 0.12, **config})
    model = transformers.LlamaForCausalLM(made).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
    size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=size if files == 1 else size // 2)
    return model


def logits_of(model, ids_BT):
    with torch.inference_mode():
        return model(torch.tensor(ids_BT)).logits.float().numpy()
