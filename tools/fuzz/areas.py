"""The areas of inputs by name, and their shares of all inputs."""

from tools.fuzz import checkpoints, documents, evaluation, launching, processes, weights
from tools.fuzz.harness import MakeInput

# In the order in which a user meets them: training, weights, evaluation, the command line.
AREAS: dict[str, MakeInput] = {
    "overrides": launching.overrides,
    "experiments": launching.experiments,
    "configs": launching.configs,
    "corpora": documents.corpora,
    "tokenizers": documents.tokenizer_files,
    "prompts": documents.prompts,
    "weights": weights.weights_folders,
    "runs": weights.run_folders,
    "checkpoints": checkpoints.damaged_checkpoints,
    "data": evaluation.data_files,
    "apps": evaluation.apps_folders,
    "samples": evaluation.samples_files,
    "own": evaluation.own_files,
    "requests": evaluation.requests,
    "processes": processes.commands,
}
# Relative numbers of inputs. Areas whose inputs take longer have fewer.
SHARES = {
    "overrides": 60,
    "experiments": 80,
    "configs": 150,
    "corpora": 60,
    "tokenizers": 100,
    "prompts": 80,
    "weights": 120,
    "runs": 80,
    "checkpoints": 20,
    "data": 150,
    "apps": 60,
    "samples": 120,
    "own": 80,
    "requests": 80,
    "processes": 4,
}
