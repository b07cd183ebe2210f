"""A stage with adapters in real processes: killed and resumed, refused when its config changes."""

import signal

import pytest
from tiny_run import launch, losses, parameters, same_bits

LORA = ("--long.lora.rank", "2", "--long.lora.targets", "q", "down")


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(place):
    code, _, errors = launch(place, "whole", *LORA)
    assert code == 0, errors
    # After the checkpoint of step 3.
    killed = {"AT": "long:3", "SIGNAL": str(int(signal.SIGKILL))}
    code, _, errors = launch(place, "killed", *LORA, **killed)
    assert code == -signal.SIGKILL, errors
    code, _, errors = launch(place, "killed", *LORA)
    assert code == 0, errors
    trained = parameters(place, "whole", "long", 4)
    assert set(trained["layers"]) == {"attention", "ffn"} and "embedding" not in trained
    same_bits(trained, parameters(place, "killed", "long", 4))
    assert losses(place, "whole", "long") == losses(place, "killed", "long")
    code, _, errors = launch(place, "killed", "--long.lora.rank", "4")
    assert code == 2
    assert errors.count("\n") == 1 and "arms.main.long.lora.rank: 2 -> 4" in errors
    code, _, errors = launch(place, "killed")
    assert code == 2
    assert "another config (arms.main.long.lora: {" in errors
