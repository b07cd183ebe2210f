"""Two evaluations into one folder: the second is refused in one line while the first writes."""

import pytest
from etils import epath

from codellama_jax.benchmarks.evaluate import evaluate
from codellama_jax.benchmarks.settings import Checking, Settings, ShotOptions
from codellama_jax.errors import UserError
from codellama_jax.system import locks


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    data = tmp_path / "gsm8k.jsonl"
    data.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"task_id": "0", "completion": "2"}\n')
    out = tmp_path / "out"
    options = ShotOptions(data=str(data), shots=0)
    with locks.sole_writer(epath.Path(out)), pytest.raises(UserError, match="is being written by"):
        evaluate("gsm8k", None, options, Settings(), Checking(), out, str(samples))
