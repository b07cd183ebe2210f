"""The benchmarks by name; each file says how one loads, prompts, ends and checks."""

from codellama_jax.benchmarks.suites import (
    apps,
    docstring,
    gsm8k,
    humaneval,
    humaneval_infilling,
    humaneval_x,
    key_retrieval,
    lcc,
    mbpp,
    multipl_e,
    single_line,
    truthfulqa,
)

LOADERS = {
    "humaneval": humaneval.load,
    "humaneval_plus": humaneval.load_plus,
    "mbpp": mbpp.load,
    "apps": apps.load,
    "multipl_e": multipl_e.load,
    "humaneval_x": humaneval_x.load,
    "humaneval_infilling": humaneval_infilling.load,
    "single_line": single_line.load,
    "docstring": docstring.load,
    "gsm8k": gsm8k.load,
    "gsm8k_programs": gsm8k.load_programs,
    "lcc": lcc.load,
    "key_retrieval": key_retrieval.load,
    "truthfulqa": truthfulqa.load,
}
