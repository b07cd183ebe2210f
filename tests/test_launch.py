"""The command line as a user meets it: every mistake is one line and exit code 2."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
from golden_cases import ABLATIONS, EXPERIMENTS, GENERATED
from paths import GOLDEN, ROOT

from codellama_jax import overrides
from codellama_jax.cli import main, spelled_out
from codellama_jax.config import Experiment, from_dict
from codellama_jax.errors import UserError
from codellama_jax.runs.commands import PlanOptions, load_experiment


def run(*args: str, monkeypatch, capsys) -> tuple[int, str, str]:
    """Returns exit code, output and errors of `launch.py args`, in this process."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *args])
    code = 0
    try:
        main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def cli(monkeypatch, capsys):
    return lambda *args: run(*args, monkeypatch=monkeypatch, capsys=capsys)


@pytest.mark.parametrize("name, scale", EXPERIMENTS)
def test_resolved_configs_have_not_drifted(name, scale):
    """A change here is a change of what is trained. `make golden` writes them anew."""
    experiment, _ = load_experiment(PlanOptions(name, scale))
    golden = json.loads((GOLDEN / f"{name}-{scale}.json").read_text())
    assert from_dict(Experiment, golden) == experiment


def test_plan_prints_the_papers_numbers(cli):
    code, out, _ = cli("plan", "experiments/code_llama.py", "--scale", "34b")
    assert code == 0
    for part in (
        "33.7B",
        "500B",
        "119,209",
        "1,024 x 4,096",
        "0.00015 -> 5e-06",
        "11,000",
        "64 x 16,384",
        "11.5B",
        "1e+06",
        "405GB",
    ):
        assert part in out


def test_plan_of_an_ablation_says_which_stages_are_trained_once(cli):
    code, out, _ = cli("plan", "scratch_vs_llama2", "--scale", "7b")
    assert code == 0
    for part in ("500B", "119,209", "1,024 x 4,096", "0.0003 -> 1e-05", "run:llama2"):
        assert part in out
    assert "equal to" not in out
    _, out, _ = cli("plan", "long_context_cost", "--scale", "7b")
    for part in ("6.29B", "3,000", "128 x 16,384", "512 x 4,096", "2e-05 -> 6.7e-07"):
        assert part in out
    assert (out.count("equal to plain's"), out.count("equal to infilling's")) == (5, 2)
    _, out, _ = cli("plan", "long_context_cost")
    assert "at scale toy, 5 seeds" in out


@pytest.mark.parametrize("name", ["code_llama", *ABLATIONS])
def test_plan_starts_no_jax(name):
    program = (
        f"import sys; from codellama_jax import cli; cli.parse(['plan', '{name}'], 'launch.py')();"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_every_ablation_is_run_by_make_and_shares_its_stages():
    """Equal stages are the same in all of them: one tokenizer, one corpus, one general model.

    rope_theta adds a source that its general model reads, so that its tokenizer differs too, and
    has a narrower model at toy scale, which learns to find keys.
    """
    makefile = (ROOT / "Makefile").read_text().splitlines()
    [made] = [line.split()[2:] for line in makefile if line.startswith("ABLATIONS")]
    assert sorted(made) == sorted((*ABLATIONS, *GENERATED))
    toys = [load_experiment(PlanOptions(name, "toy"))[0] for name in ABLATIONS]
    shared = set()
    for toy in toys:
        corpus = dataclasses.replace(toy.corpus, others={})
        assert toy.name == "rope_theta" or corpus == toy.corpus
        shared.add((corpus, toy.tokenizer, toy.seed, toy.seeds))
    assert len(shared) == 1
    generals: dict = {}
    for toy in toys:
        for chain in toy.arms.values():
            if "general" in chain:
                generals.setdefault(chain["general"], set()).add(toy.name)
    names = sorted(generals.values(), key=len)
    assert names == [{"rope_theta"}, {*ABLATIONS} - {"rope_theta"}]
    # What the tokenizer is trained on.
    mixtures = set()
    for toy in toys:
        if toy.name != "rope_theta":
            first = next(iter(next(iter(toy.arms.values())).values()))
            mixtures.add((first.data.mixture, first.data.block_chars))
    assert len(mixtures) == 1


def test_a_mesh_can_be_written_in_one_word():
    dotted = spelled_out(["compile", "code_llama", "--mesh", "fsdp=64,tensor=4", "--search"])
    assert dotted == ["compile", "code_llama", "--mesh.fsdp=64", "--mesh.tensor=4", "--search"]
    assert spelled_out(["plan", "--mesh=fsdp=2"]) == ["plan", "--mesh.fsdp=2"]


@pytest.mark.parametrize("axes", ["", "fsdp=2,,tensor=2", "--search"])
def test_a_mesh_without_axes_and_sizes_is_refused(axes):
    with pytest.raises(UserError, match=r"--mesh is '.*': it must be axes with their sizes"):
        spelled_out(["plan", "--mesh", axes])


def test_a_mesh_without_a_number_is_one_line(cli):
    code, _, err = cli("plan", "quickstart", "--mesh", "fsdp")
    assert code == 2 and err.count("\n") == 1 and "mesh.fsdp" in err


def test_overrides_reach_every_arm(cli):
    _, out, _ = cli(
        "plan", "quickstart", "--code.steps", "77", "--mesh.tensor", "2", "--code.model.n-layers=3"
    )
    assert " 77 " in out
    experiment, _ = load_experiment(PlanOptions("quickstart"))
    options = overrides.options(experiment)
    options["code"] = dataclasses.replace(options["code"], steps=77)
    both = dataclasses.replace(
        experiment, arms=experiment.arms | {"other": experiment.arms["main"]}
    )
    changed = overrides.apply(both, options)
    assert [arm["code"].steps for arm in changed.arms.values()] == [77, 77]
    assert changed.arms["main"]["long_context"] == experiment.arms["main"]["long_context"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["plan", "quickstrat"], "no experiment quickstrat: did you mean quickstart?"),
        (
            ["plan", "experiments/nowhere.py"],
            "no experiment experiments/nowhere.py: there are code_llama, code_llama_instruct,",
        ),
        (["plan", "code_llama", "--scale", "8b"], "no scale 8b: there are 7b, 13b, 34b, 70b"),
        (["plan", "code_llama", "--arm", "none"], "no arm none: there are code_llama"),
        (["plan", "quickstart", "--code.optimizer.peak-lrr", "1"], "--code.optimizer.peak-lr"),
        (["plan", "quickstart", "--code.steps", "many"], "--code.steps"),
        (["plan", "quickstart", "--scael", "toy"], "--scale"),
        (
            ["plan", "quickstart", "--code.optimizer.learning-rate", "-0.001"],
            "unrecognized option: --code.optimizer.learning-rate; see .* plan quickstart --help$",
        ),
        (
            ["plan", "quickstart", "--mesh.fdsp", "4", "--foo", "x"],
            r"unrecognized options: --mesh.fdsp, --foo; did you mean --mesh.fsdp\?",
        ),
        (["plan", "quickstart", "extra"], "unrecognized arguments: extra; see"),
        (
            ["plan", "learning_rate", "--code.optimizer.peak-lr", "1e-3"],
            r"--code.optimizer.peak-lr differs between the arms"
            r" \(same 0.004, third 0.00133, tenth 0.0004\): change it in a copy",
        ),
        (
            ["plan", "rope_theta", "--long-context.model.rope-theta", "2e4"],
            "--long-context.model.rope-theta differs between the arms",
        ),
        (
            ["plan", "quickstart", "--code.data.batch-size", "0"],
            "--code.data.batch-size is 0: it must be at least 1",
        ),
        (
            ["plan", "quickstart", "--code.steps", "1" + "0" * 400],
            r"--code.steps is 10+\.\.\. \(401 digits\)",
        ),
        (
            ["plan", "quickstart", "--code.data.mixture.code", "inf"],
            "--code.data.mixture.code is inf: it must be a finite",
        ),
        (
            ["plan", "quickstart", "--code.model.n-kv-heads", "7"],
            "--code.model.n-kv-heads is 7: it must divide n_heads",
        ),
        (["plan", "quickstart", ""], "an argument is empty"),
        (["plan", "launch.py"], "launch.py is not an experiment file"),
        (["plan", "a" * 5000], r"the path 'a+'\.\.\. \(5,000 characters\) is too long"),
        (
            ["compile", "quickstart", "--stage", "decode", "--context", "-5"],
            "--context is -5: it must be at least 1",
        ),
        (["compile", "quickstart", "--target", "v5e:4x4x4"], "a v5e pod has two axes"),
        (
            ["walk", "quickstart"],
            "VERB is 'walk': it must be one of run, plan, compile, prepare, ",
        ),
        (
            ["run", "quickstart", "--mesh.fsdp", "3"],
            "needs 3 devices and there are 8: change --mesh",
        ),
        (["run", "quickstart", "--code.data.batch-size", "6"], "6 sequences .* multiple of 8"),
        (["run", "code_llama", "--corpus.code", "/nowhere"], "there is no folder .*llama2"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(cli, tmp_path, args, message):
    import re

    where = ["--out", str(tmp_path / "run")] if args[0] == "run" else []
    code, _, err = cli(*args, *where)
    assert code == 2
    assert re.search(message, err)
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_help_lists_what_can_be_overridden(cli):
    code, out, _ = cli("run", "quickstart", "--help")
    assert code == 0
    assert "--long-context.optimizer.peak-lr" in out
    assert "--fresh" in out
    assert "\nExpected  validation loss" in out and "\nCost      under" in out  # lines stay lines


def test_a_warm_up_longer_than_the_steps_is_a_warning(cli):
    code, out, err = cli("plan", "quickstart", "--code.steps", "50")
    assert code == 0 and "50" in out
    assert "never reaches its peak, 0.004; give fewer warm-up steps, such as 5" in err


def test_a_python_without_the_projects_packages_gets_one_line():
    done = subprocess.run(
        [sys.executable, "-S", "launch.py", "plan", "quickstart"],  # -S: no site-packages
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has no package tyro: run `make quickstart` once" in done.stderr


def test_a_run_prints_a_line_before_jax_starts(cli, tmp_path):
    code, out, err = cli("run", "quickstart", "--mesh.fsdp", "3", "--out", str(tmp_path / "run"))
    assert code == 2 and out.startswith("starting JAX\n") and err.startswith("error: ")
