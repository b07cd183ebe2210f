"""Code Llama - Instruct with and without conversations that a model wrote and a sandbox checked.

Claim     Table 8, greedy pass@1 without / with: HumanEval 30.5 / 34.8 % for 7B, 40.9 / 42.7 % for
          13B; MBPP with three examples 43.4 / 44.4 and 46.2 / 49.4; MBPP without examples 37.6 /
          37.4 and 20.4 / 40.2 (13B without the data often misses the format).
Expected  with the data more held-out functions pass.
Cost      toy, five seeds: 10 minutes of processor time (two AMD EPYC cores with AVX2).
          7B: twice 5B tokens; `launch.py plan self_instruct --scale 7b`.
Command   python launch.py run experiments/self_instruct.py
          python launch.py self-instruct data/self --question-model runs/llama2_70b_chat
          --model runs/code_llama_7b
          python launch.py run experiments/self_instruct.py --scale 7b --out gs://BUCKET/self
          --instruct.init run:CODE_LLAMA_RUN --tokenizer.path tokenizer.model
          --corpus.others.self-instruct data/self/dataset.jsonl
          --corpus.others.conversations prepared:CONVERSATIONS
          --corpus.code gs://BUCKET/code --corpus.language gs://BUCKET/text

Both arms train on the same number of tokens. The paper's other conversations, Llama 2's for
alignment, are not published; neither is the share of the self-instruct ones, here half.

At toy scale the base model is trained on a generated family of functions on lists and texts
(data/generated_functions.py). Where Llama 2 70B and Code Llama 7B follow a prompt, it continues
such records: it lists questions, writes tests, and writes solutions given one test. The sandbox
keeps the first solution that passes. The other conversations are 48 of the family. Questions about
held-out functions are left out of the data.
"""

from codellama_jax.alignment.self_instruct import Amounts
from codellama_jax.alignment.stages import SelfInstructStage, Writing
from codellama_jax.config import CorpusConfig, Experiment, TokenizerConfig
from codellama_jax.report.findings import Difference, Finding, Results, pairs, spread
from experiments import code_llama_instruct, generated

PAPER = {"without": "7B 30.5 %, 13B 40.9 %", "with": "7B 34.8 %, 13B 42.7 %"}
# Shares of the training sequences; rehearsal has the rest.
SHARES = {
    "without": {"conversations": 0.92},
    "with": {"conversations": 0.46, "self_instruct": 0.46},
}


def experiment(scale: str = "toy") -> Experiment:
    """Returns two arms that differ in the conversations of the last stage."""
    if scale == "toy":
        return _toy()
    arms = {}
    for arm, shares in SHARES.items():
        arms[arm] = {"instruct": code_llama_instruct.instruct(scale, shares)}
    # Placeholders: --corpus.others names the files.
    sources = {"conversations": "conversations.jsonl", "self_instruct": "self_instruct.jsonl"}
    tokenizer, corpus = TokenizerConfig("tokenizer.model"), CorpusConfig(others=sources)
    return Experiment("self_instruct", scale, arms, tokenizer, corpus)


def _toy() -> Experiment:
    model = generated.LLAMA
    base = generated.stage(model, {"records": 1.0}, steps=400, init="scratch")
    arms = {}
    for arm, shares in SHARES.items():
        instruct = generated.stage(
            model, {**shares, "records": 0.08}, steps=40, peak_lr=1e-3, chat="llama2"
        )
        arms[arm] = {"base": base, "instruct": instruct}
    # Tasks of the three models fall to one toy, which was trained on records of all three kinds.
    data = SelfInstructStage(
        question_model="base",
        test_model="base",
        solution_model="base",
        amount=Amounts(prompts=128, questions=3, solutions=4, batch=128),
        writing=Writing("pangu_coder2", "toy", temperature=0.6, max_new_tokens=140),
    )
    return generated.toy_experiment("self_instruct", arms, "llama2", {"self_instruct": data})


def finding(results: Results) -> Finding:
    """Compares pass@1 of the two arms, seed by seed."""
    shares = generated.pass_at_1(results)
    rows = [(arm, spread(values, ".1%"), PAPER[arm]) for arm, values in shares.items()]
    gains = pairs(shares["with"], shares["without"])
    caption = "Share of held-out functions of which the greedy answer passes all tests."
    return Finding(
        question="Do programs that the model wrote itself, and a sandbox checked, improve it?",
        source="table 8",
        headings=("self-instruct data", "pass@1", "paper: HumanEval"),
        rows=rows,
        figures=[(caption, [generated.panel(shares)])],
        differences=[Difference("pass@1 with the data minus without", "share", gains)],
        reason="the toy writes right tests for few questions, so that few solutions are kept.",
    )
