"""Exports as llama.cpp itself runs them. Needs the package xllamacpp, which contains it."""

import json
import urllib.error
import urllib.request
from dataclasses import replace

import byte_bpe_cases
import jax
import numpy as np
import published
import pytest
from etils import epath

from codellama_jax.models.llama.model import Llama
from codellama_jax.weights import gguf_writing

xllamacpp = pytest.importorskip("xllamacpp")
LLAMA3 = {"rope_type": "llama3", "rope_scaling": 8.0, "rope_original_length": 8192}
HEADS = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope_theta": 1e4}
MODELS = {  # changes to the model, and the kind of the tokenizer
    "llama": ({}, ""),
    "tied": ({"tied_embeddings": True, "rope_scaling": 4.0}, "gpt2"),
    "llama3": ({**LLAMA3, "rope_theta": 5e5}, "starcoder"),
    "qwen2": ({"attention_bias": "qkv"}, "codex"),
    "biased": ({"attention_bias": "all"}, "codegeex"),
}
TEXT = "def mean(xs):\n    return sum(xs) / 1234  # é\n"


class LlamaCpp:
    """A server of llama.cpp with one model, in this process."""

    def __init__(self, path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
        params.cpuparams.n_threads = 1
        params.verbosity = -1
        params.port = 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # Flash attention of llama.cpp rounds keys and values to float16.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def post(self, route, **body):
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + route, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokens(self, text):
        """Returns the ids of a text, in which `</s>` is text as well."""
        return self.post("/tokenize", content=text, add_special=False, parse_special=False)[
            "tokens"
        ]


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    """A random model, its tokenizer, and llama.cpp with its export."""
    changes, kind = MODELS[request.param]
    tokenizer = byte_bpe_cases.trained(kind) if kind else published.tokenizer()
    changes = {**HEADS, **changes}
    model = replace(published.MODEL, vocab_size=tokenizer.vocab_size, **changes)
    params = published.random_params(model)
    folder = epath.Path(tmp_path_factory.mktemp(request.param)) / "out"
    gguf_writing.write(published.source_of(params, model), tokenizer, folder, "f32")
    return model, params, tokenizer, LlamaCpp(folder / "model.gguf")


def test_llama_cpp_has_our_ids(case):
    _, _, tokenizer, server = case
    assert server.tokens(TEXT) == tokenizer.encode(TEXT)
    assert server.tokens("<PRE> </s>") == tokenizer.encode("<PRE> </s>")


def test_llama_cpp_has_our_probabilities(case):
    model, params, tokenizer, server = case
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    positions_T = np.arange(len(ids))
    module = Llama(model)
    logits_TV = module.apply({"params": params}, np.array([ids]), positions_T[None])[0]
    ours_TV = np.asarray(jax.nn.log_softmax(logits_TV))
    # llama.cpp reports no probabilities of markers and of parts of characters.
    last = positions_T[np.isin(ours_TV.argmax(1), tokenizer.text_ids)][-1]
    body = {"n_predict": 1, "n_probs": 20, "temperature": 0.0}
    answer = server.post("/completion", prompt=ids[: last + 1], **body)
    theirs = answer["completion_probabilities"][0]["top_logprobs"]
    assert last > 10 and len(theirs) == 20
    assert [entry["id"] for entry in theirs[:5]] == ours_TV[last].argsort()[::-1][:5].tolist()
    for entry in theirs:
        assert entry["logprob"] == pytest.approx(ours_TV[last, entry["id"]], abs=1e-4)


def test_llama_cpp_infills(case):
    """It refuses to without the ids of prefix, suffix and middle."""
    *_, server = case
    answer = server.post("/infill", input_prefix="def f(x):", input_suffix="return x", n_predict=4)
    assert answer["tokens_evaluated"] > 5
