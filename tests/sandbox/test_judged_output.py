"""What the sandbox reads of a program's output, wherever in it."""

from types import SimpleNamespace

from codellama_jax.sandbox.inside import programs


def test_a_failure_far_from_the_end_of_a_long_output_is_found():
    output = b"--- FAIL: TestF\n" + b"x" * 2 * programs.TAIL_CAP
    head = {"stdout": output, "stderr": b"", "token": b"t0"}
    tail = {name: text[-programs.TAIL_CAP :] for name, text in head.items()}
    step = SimpleNamespace(code=0, timed_out=False, out_of_memory=False, head=head, tail=tail)
    job = {"token": "t0", "marks": ["FAIL"], "silent": False}
    assert programs._verdict(step, job)[0] == "failed"
    assert programs._verdict(step, {**job, "marks": []})[0] == "passed"
