"""`complete` and `infill` as commands, with a stand-in for the model."""

import io
import json
import shutil
import subprocess
import sys

import pytest

from codellama_jax.benchmarks.commands import Evaluate, SuiteOptions
from codellama_jax.benchmarks.settings import Checking, Ranking, Settings
from codellama_jax.checkpoints import loading
from codellama_jax.errors import UserError
from codellama_jax.generation import infill as infilling
from codellama_jax.generation import text as texts
from codellama_jax.generation.commands import Complete, Infill
from codellama_jax.generation.settings import QuantizationOptions, Sampling
from codellama_jax.generation.text import Generated
from codellama_jax.tokenizers import sentencepiece as tokenizers
from codellama_jax.tokenizers.sentencepiece_file import ModelProto

PROBES = {"infilling": {"PSM": {"exact": 0.0}, "SPM": {"exact": 0.5}}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = [f"def name_{i}(x):\n    return x + {i}\n" for i in range(300)]
    return tokenizers.train(lines, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def folder(write_run, tokenizer):
    """A run that has trained, without parameters."""
    return write_run(tokenizer)


@pytest.fixture
def asked(monkeypatch):
    """Puts a stand-in in the place of the model; returns what it was asked, and what it writes."""
    calls = {"middle": "1\n2", "is_ended": True}

    def infill_one(model, prefix, suffix, sampling, spm, stop, stream, healing):
        calls.update(prefix=prefix, suffix=suffix, spm=spm, healing=healing)
        return Generated(calls["middle"], calls["is_ended"])

    def complete(model, prompts, sampling, stop, stream, *, healing):
        calls.update(prompts=prompts, healing=healing)
        stream("1\n")
        stream("2")

    monkeypatch.setattr(loading, "load_run", lambda *_: None)
    monkeypatch.setattr(loading, "keep_compiled", lambda _: None)
    monkeypatch.setattr(infilling, "infill_one", infill_one)
    monkeypatch.setattr(texts, "complete", complete)
    return calls


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_all_but_the_mark_is_the_files_own(folder, asked, capsysbinary, tmp_path, mark, newline):
    path = tmp_path / "f.py"
    path.write_bytes(mark + b"x = [\n<FILL_ME>\n'\xc3\xa9'\n".replace(b"\n", newline))
    Infill(str(folder), str(path), sampling=Sampling())()
    assert capsysbinary.readouterr().out == mark + b"x = [\n1\n2\n'\xc3\xa9'\n".replace(
        b"\n", newline
    )
    assert (asked["prefix"], asked["suffix"]) == ("x = [\n", "\n'é'\n")


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_prompt_is_printed_as_it_is(folder, asked, capsysbinary, monkeypatch, newline):
    data = b"\xef\xbb\xbfa\nb".replace(b"\n", newline)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    Complete(str(folder), "-", sampling=Sampling(), healing=True)()
    assert capsysbinary.readouterr().out == data + b"1\n2".replace(b"\n", newline) + b"\n"
    assert asked["prompts"] == ["a\nb"] and asked["healing"]


@pytest.mark.parametrize(
    ("options", "probes", "spm", "reason"),
    [
        ({}, PROBES, True, "order SPM: this run's probes filled 0.0 %"),
        ({}, None, False, "order PSM: the paper's default"),
        ({}, "{", False, "order PSM: the paper's default"),
        ({"psm": True}, PROBES, False, "order PSM: as given"),
        ({"spm": True}, None, True, "order SPM: as given"),
        ({"healing": True}, None, True, "order SPM: --healing works in no other"),
    ],
)
def test_the_order_is_chosen_and_printed(
    folder, asked, tmp_path, capsys, options, probes, spm, reason
):
    if probes:
        text = probes if isinstance(probes, str) else json.dumps(probes)
        (folder / "main" / "code" / "probes.json").write_text(text)
    (tmp_path / "f.py").write_text("<FILL_ME>")
    Infill(str(folder), str(tmp_path / "f.py"), sampling=Sampling(), **options)()
    assert asked["spm"] is spm
    assert reason in capsys.readouterr().err


def test_an_empty_middle_is_reported(folder, asked, tmp_path, capsys):
    (tmp_path / "f.py").write_text("<FILL_ME>")
    Infill(str(folder), str(tmp_path / "f.py"), sampling=Sampling())()
    assert "fills in nothing" not in capsys.readouterr().err
    asked["middle"] = " "
    Infill(str(folder), str(tmp_path / "f.py"), sampling=Sampling())()
    line = "note: the model fills in nothing here; --spm or --temperature 0.8 may differ\n"
    assert line in capsys.readouterr().err


def test_a_middle_without_an_end_is_reported(folder, asked, tmp_path, capsys):
    asked["is_ended"] = False
    (tmp_path / "f.py").write_text("<FILL_ME>")
    Infill(str(folder), str(tmp_path / "f.py"), sampling=Sampling())()
    assert (
        "warning: no end of the middle within 128 tokens: 3 characters" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("x", {}, "f.py holds 0 marks"),
        ("<FILL_ME>" * 2, {}, "f.py holds 2 marks"),
        (
            "x = 1\n" * 60_000 + "<FILL_ME>",
            {},
            r"f.py has \d\d\d,\d\d\d tokens: beside --max-new-t",
        ),
        ("<FILL_ME>", {"arm": "other"}, "has no other/"),
        ("<FILL_ME>", {"run": "absent"}, "there is no folder .*absent"),
    ],
)
def test_nothing_is_printed_before_a_mistake_is_found(
    folder, asked, capsysbinary, tmp_path, text, options, said
):
    (tmp_path / "f.py").write_text(text)
    arguments = {"run": str(folder), "text": str(tmp_path / "f.py"), "sampling": Sampling()}
    with pytest.raises(UserError, match=said):
        Infill(**arguments | options)()
    assert capsysbinary.readouterr().out == b"" and "prefix" not in asked


def test_a_model_without_sentinels_is_refused_before_jax_starts(folder, tmp_path, tokenizer):
    """In a process of its own: other tests have imported JAX. Nothing reaches the output file."""
    for path in (folder / "config.json", folder / "main" / "code" / "config.json"):
        text = path.read_text().replace(
            f'"vocab_size": {tokenizer.vocab_size}', '"vocab_size": 320'
        )
        path.write_text(text)
    (tmp_path / "f.py").write_text("before <FILL_ME> after")
    command = ["-X", "importtime", "-m", "codellama_jax", "infill", str(folder)]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "f.py")], capture_output=True, text=True
    )
    last_line = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert last_line.startswith(f"error: {folder} was trained without infilling")
    assert not any(line.endswith(("| jax", "| flax")) for line in done.stderr.splitlines())


def test_options_that_exclude_each_other_are_refused():
    for options, said in (
        ({"spm": True, "psm": True}, "--spm and --psm exclude each other"),
        ({"psm": True, "healing": True}, "--healing works in SPM order only"),
        ({"stop": ("",)}, "--stop is ''"),
        ({"quantization": QuantizationOptions("none,int8")}, "`evaluate` and `serve` take several"),
    ):
        with pytest.raises(UserError, match=said):
            Infill("run", "f.py", sampling=Sampling(), **options)
    drafts = QuantizationOptions(speculate=4)
    with pytest.raises(UserError, match="--speculate 4 has no effect with --beams 2: leave it out"):
        Complete("run", "x", sampling=Sampling(beams=2), quantization=drafts)


def test_a_missing_draft_model_is_named_before_any_model_is_loaded(folder, asked, tmp_path):
    drafts = QuantizationOptions(speculate=4, draft_model=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="missing"):
        Complete(str(folder), "x", sampling=Sampling(), quantization=drafts)()
    assert "prompts" not in asked


@pytest.fixture
def other_run(folder, tokenizer, tmp_path):
    """A run of another tokenizer."""
    proto = ModelProto.FromString(tokenizer.model)
    proto.pieces[-1].piece += "x"
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.model").write_bytes(proto.SerializeToString())
    return tmp_path / "other"


def test_a_draft_model_of_another_tokenizer_is_refused_before_any_is_loaded(
    folder, other_run, monkeypatch
):
    monkeypatch.setattr(loading, "load_run", None)
    drafts = QuantizationOptions(speculate=4, draft_model=str(other_run))
    complete = Complete(str(folder), "x", sampling=Sampling(), quantization=drafts)
    parts = (SuiteOptions(), Settings(), Checking(), Ranking(), str(folder))
    evaluate = Evaluate("humaneval", "out", *parts, quantization=drafts)
    for command in (complete, evaluate.load):
        with pytest.raises(UserError, match="other has another tokenizer than"):
            command()


def test_a_model_of_docstrings_that_did_not_train_is_named_before_samples_are_drawn(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "load_run", None)
    ranking = Ranking(("back-translation",), str(tmp_path))
    parts = (SuiteOptions(), Settings(samples=2), Checking(), ranking, str(folder))
    with pytest.raises(UserError, match="is not the folder of a run"):
        Evaluate("humaneval", "out", *parts).load()


def test_a_sequence_longer_than_in_training_is_warned_of(folder, asked, capsys):
    Complete(str(folder), "x", sampling=Sampling(max_new_tokens=600))()
    assert "the model was trained on sequences of 512" in capsys.readouterr().err


def test_a_progress_line_comes_before_the_model_is_loaded(folder, asked, capsys):
    Complete(str(folder), "x", sampling=Sampling())()
    assert capsys.readouterr().err.startswith(f"starting JAX and loading {folder}\nreading ")


def test_ctrl_c_ends_the_process_while_a_prompt_is_read():
    """The computation would take minutes, and the interpreter waits for it when it exits."""
    program = """if True:
        import os, signal, threading
        import jax, jax.numpy as jnp
        from codellama_jax.generation.commands import ends_at_once
        from codellama_jax.generation.batches import fetched
        # A shell that starts the tests in the background lets them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        step = lambda _, x: jnp.tanh(x @ x)
        slow = jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, step, x))
        compiled = slow.lower(jnp.ones((256, 256))).compile()
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with ends_at_once():
            fetched(compiled(jnp.ones((256, 256))))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "\nstopped\n")
