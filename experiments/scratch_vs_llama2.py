"""Code training from a general model against code training from scratch: the same documents, the same tokens.

Claim     Figure 5b (section 3.4.1), 7B: trained from scratch on the same 500B tokens, the loss ends where Code Llama's, which started
          from Llama 2, was about half-way: 240B tokens earlier.
Expected  from the general model the final loss is lower, and the one from scratch is reached with tokens to spare.
Cost      toy: about 8 minutes on two CPU cores for three seeds. 7B: twice 500B tokens; `launch.py plan scratch_vs_llama2 --scale 7b`.
Command   python launch.py run experiments/scratch_vs_llama2.py
          python launch.py run experiments/scratch_vs_llama2.py --scale 7b --arm llama2 --general.init run:LLAMA2_RUN
          (tokenizer and corpus as for code_llama.py)
"""

import dataclasses

from codellama_jax import recipe
from codellama_jax.config import Experiment
from codellama_jax.figures import Panel
from codellama_jax.findings import Difference, Finding, crossing, pairs, spread
from codellama_jax.plan import short

PAPER = {"llama2": "reached that of scratch after about 260B of 500B tokens", "scratch": "curve only"}


def experiment(scale: str = "toy") -> Experiment:
    general, code = recipe.general(scale), recipe.code(scale)
    untrained = dataclasses.replace(general, init="scratch", steps=0)
    arms = {
        "llama2": {"general": general, "code": code},
        "scratch": {"untrained": untrained, "code": code},
    }
    return recipe.ablation("scratch_vs_llama2", scale, arms)


def finding(results) -> Finding:
    code = {arm: [chain[-1] for chain in seeds] for arm, seeds in results.items()}
    whole = [result.curve[-1][0] for result in code["llama2"]]
    reached = [crossing(a.curve, b.loss) for a, b in zip(code["llama2"], code["scratch"])]
    saved = [1 - tokens / all for tokens, all in zip(reached, whole)]
    losses = {arm: [result.loss for result in seeds] for arm, seeds in code.items()}
    return Finding(
        question="How many tokens of code does a general model save?",
        headings=("code training from", "validation loss (nats a token)", "paper, 7B"),
        rows=[(arm, spread(losses[arm]), PAPER[arm]) for arm in code]
        + [("tokens saved", f"{spread(saved, '.0%')} of {short(whole[0])}", "about 48% of 500B")],
        figures=[
            (
                "Validation loss over the tokens of code training.",
                [Panel("tokens of code training", "validation loss (nats a token)", {a: [r.curve for r in s] for a, s in code.items()})],
            )
        ],
        differences=[
            Difference("final loss, from scratch minus from the general model", "nats a token", pairs(*code_of(code), lambda r: r.loss)),
            Difference("tokens saved", "share of the code tokens", saved),
        ],
        reason="the general model saw few tokens, most of them unlike code.",
    )


def code_of(code: dict) -> tuple:
    return code["scratch"], code["llama2"]
