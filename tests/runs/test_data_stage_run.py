"""An experiment whose model writes the data of its second stage, killed while it writes."""

import json
import signal

import pytest
from tiny_run import launch

EXPERIMENT = '''
"""A model answers prompts; its second stage reads the answers."""
import dataclasses, json, os, signal
from dataclasses import dataclass
from codellama_jax.alignment.answers import answered
from codellama_jax.config import *
from codellama_jax.data_stage import DataStage
from codellama_jax.generation.settings import Sampling
from codellama_jax.models.llama.config import LlamaConfig
from codellama_jax.tokenizers.chat import Message

@dataclass(frozen=True)
class Answers(DataStage, kind="answers"):
    output = "conversations.jsonl"
    count: int = 12
    def models(self):
        return ("base",)
    def amounts(self):
        return f"{self.count} answers"
    def make(self, answerers, folder, seed):
        answerer = answerers("base", "pangu_coder2", Sampling(1.0, max_new_tokens=8, seed=seed))
        def killed(requests, at_once):
            for answer in answerer(requests, at_once):
                if "KILL" in os.environ and (folder / "answers.jsonl").exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                yield answer
        asked = {("t", n): [Message("user", f"def alpha_{n}")] for n in range(self.count)}
        texts = answered(killed, asked, folder / "answers.jsonl", 4)
        lines = []
        for (_, n), text in texts.items():
            messages = [{"role": "user", "content": f"def alpha_{n}"},
                        {"role": "assistant", "content": f"beta {text}"}]
            lines.append(json.dumps({"messages": messages}) + "\\\\n")
        (folder / self.output).write_text("".join(lines))
        return {"answers": len(texts), "reasons": {}}

def experiment(scale="toy"):
    model = LlamaConfig(320, 32, 2, 4, 2, 8, 64, compute_dtype="float32", remat="none")
    data = DataConfig(64, 8, MixtureConfig(code=1.0), block_chars=150)
    base = Stage(model, data, OptimizerConfig(1e-2, 2), 8, "scratch",
                 eval_rows=8, eval_every=4, checkpoint_every=8, log_every=1)
    mixture = MixtureConfig(others={"answers": 1.0})
    chat = dataclasses.replace(data, mixture=mixture, chat="llama2")
    tuned = dataclasses.replace(base, init="previous", steps=4, data=chat)
    corpus = CorpusConfig(code="SOURCES", validation_fraction=0.3)
    return Experiment("tiny", scale, {"main": {"base": base, "tuned": tuned}},
                      TokenizerConfig(pieces=320), corpus, data_stages={"answers": Answers()})
'''


def files_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_while_a_model_writes_a_run_ends_with_the_same_data(place):
    sources = str(place / "sources")
    (place / "tiny.py").write_text(EXPERIMENT.replace("\\\\n", "\\n").replace("SOURCES", sources))
    code, output, errors = launch(place, "undisturbed", REPORT="1")
    assert code == 0, errors
    assert "main/answers: answers 12" in output
    report = (place / "undisturbed" / "report.md").read_text()
    assert "## Data that models wrote" in report
    code, _, _ = launch(place, "killed", KILL="1")
    assert code == -signal.SIGKILL
    answers = place / "killed" / "main" / "answers"
    assert len((answers / "answers.jsonl").read_text().splitlines()) == 4
    code, output, errors = launch(place, "killed")
    assert code == 0, errors
    assert files_of(answers) == files_of(place / "undisturbed" / "main" / "answers")
    identities = []
    for run in ("undisturbed", "killed"):
        identities.append((place / run / "main" / "tuned" / "identity.txt").read_text())
    assert identities[0] == identities[1]
    assert json.loads((answers / "done.json").read_text())["counts"]["answers"] == 12
    code, output, errors = launch(place, "killed")
    assert "main/answers: done before, skipped" in output
