"""`launch.py compile`: compiles a stage, prefill or decoding for a pod that is not there, and says what the compiler says."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
from typing import Any

from jax.sharding import Mesh

from codellama_jax.checked import FieldError
from codellama_jax.compile import program, target
from codellama_jax.compile.report import Report, TooLarge, examine, gib, lines
from codellama_jax.config import Experiment, MeshConfig, ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token
from codellama_jax.sharding.mesh import make_mesh
from kernels.static.chips import CHIPS

INFERENCE = ("prefill", "decode")
TOO_LARGE = 3  # exit code
SEARCHED = 16  # programs that --search compiles at most


@dataclasses.dataclass(frozen=True)
class Job:
    """One program for one pod."""

    stage: Stage
    kind: str  # train | prefill | decode
    mesh: MeshConfig
    batch: int  # rows of prefill and decoding
    context: int  # tokens of a prompt or of what is in the cache


def choose_stage(experiment: Experiment, arm: str, name: str) -> Stage:
    """Returns the stage of that name; for prefill and decode the last one, whose model is used. Raises UserError naming those there are."""
    chains = [chain for a, chain in experiment.arms.items() if arm in ("", a)]
    if name in INFERENCE:
        return list(chains[-1].values())[-1]
    stages = {
        n: s for chain in reversed(chains) for n, s in chain.items()
    }  # of the first arm that has it
    if name not in stages:
        raise UserError(f"no stage {name!r}: there are {', '.join([*stages, *INFERENCE])}")
    return stages[name]


def inference_flops(model: ModelConfig, job: Job, causal: bool) -> float:
    """FLOPs of one prefill, or of one step of decoding: a third of training's, for there is only the forward pass."""
    if job.kind == "prefill":
        return job.batch * job.context * flops_per_token(model, job.context, causal) / 3
    return job.batch * flops_per_token(model, job.context, causal=False) / 3


def compile_job(job: Job, chip: str, mesh: Mesh, cache: str) -> tuple[Report, int]:
    """Returns what the compiler says and the tokens of a step."""
    model, data = job.stage.model, job.stage.data
    if job.kind == "train":
        lowered, tokens = program.lower_train_step(job.stage, mesh), data.batch_size * data.seq_len
        flops = [tokens * flops_per_token(model, data.seq_len, causal) for causal in (False, True)]
    else:
        lower = program.lower_prefill if job.kind == "prefill" else program.lower_decode
        lowered, tokens = (
            lower(model, job.batch, job.context, mesh),
            job.batch * (job.context if job.kind == "prefill" else 1),
        )
        flops = [inference_flops(model, job, causal) for causal in (False, True)]
    full, causal = (f / mesh.size for f in flops)
    return examine(lowered, chip, (full, causal), cache), tokens


def candidates(job: Job, devices: int) -> list[Job]:
    """Returns what --search tries: tensor and context axes, rematerialisation, micro-batches; likely ones first."""
    found = []
    for tensor, context, remat, micro in itertools.product(
        (1, 2, 4, 8), (1, 2), ("dots", "full"), (1, 2, 4)
    ):
        rows = devices // (tensor * context)
        model, batch = job.stage.model, job.stage.data.batch_size
        if (
            devices % (tensor * context)
            or batch % (rows * micro)
            or model.d_model % rows
            or model.n_kv_heads % tensor
        ):
            continue
        stage = dataclasses.replace(
            job.stage, model=dataclasses.replace(model, remat=remat), micro_batches=micro
        )
        found.append(
            dataclasses.replace(
                job,
                stage=stage,
                mesh=MeshConfig(data=job.mesh.data, fsdp=-1, context=context, tensor=tensor),
            )
        )
    return sorted(found, key=lambda j: (j.mesh.context, j.stage.micro_batches))[:SEARCHED]


def search(job: Job, chip: str, devices: list, cache: str) -> tuple[Job, Report, int]:
    """Returns the candidate that fits with the shortest estimated step. Raises UserError if none fits."""
    best = None
    for trial in candidates(job, len(devices)):
        mesh, stage = trial.mesh, trial.stage
        said = f"tensor {mesh.tensor} context {mesh.context} remat {stage.model.remat} micro-batches {stage.micro_batches}"
        try:
            report, tokens = compile_job(trial, chip, make_mesh(mesh, devices), cache)
        except TooLarge:
            print(f"{said}: does not fit", flush=True)
            continue
        print(f"{said}: fits, MFU {report.mfu(chip)[0]:.3f} (compiler estimate)", flush=True)
        if best is None or report.seconds < best[1].seconds:
            best = trial, report, tokens
    if best is None:
        raise UserError("nothing that was tried fits: take a larger pod or a smaller batch")
    return best


def cost() -> str:
    """Returns what compiling took here, in this process and those that it started."""
    own, others = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    seconds = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    return f"compiled in {seconds:.0f} s of CPU time and {gib(1024 * max(own.ru_maxrss, others.ru_maxrss))} of memory"


def compile_experiment(experiment: Experiment, choice: Any) -> None:
    """Prints what the compiler says of `choice`, a `launch.Compile`; exits with 3 if it does not fit.

    Raises UserError for a stage, pod or mesh that cannot be.
    """
    stage = choose_stage(experiment, choice.arm, choice.stage)
    try:
        _compile_stage(experiment, choice, stage)
    except FieldError as error:
        raise error.under(choice.stage) from None


def _compile_stage(experiment: Experiment, choice: Any, stage: Stage) -> None:
    devices, chip = target.devices(choice.target, choice.slices), choice.target.partition(":")[0]
    mesh = (
        experiment.mesh
        if experiment.mesh.data > 1
        else dataclasses.replace(experiment.mesh, data=choice.slices)
    )
    job = Job(
        stage,
        choice.stage if choice.stage in INFERENCE else "train",
        mesh,
        choice.batch,
        choice.context,
    )
    slices = f", {choice.slices} slices" if choice.slices > 1 else ""
    print(
        f"{experiment.name} {experiment.scale} {choice.stage} on {choice.target}{slices}",
        flush=True,
    )
    try:
        if choice.search and job.kind == "train":
            job, report, tokens = search(job, chip, devices, choice.cache)
        else:
            report, tokens = compile_job(job, chip, make_mesh(job.mesh, devices), choice.cache)
    except TooLarge as refusal:
        print(f"DOES NOT FIT {CHIPS[chip].hbm_gib} GiB of HBM: {refusal}\n{cost()}")
        sys.exit(TOO_LARGE)
    print(
        "\n".join(
            [
                *lines(report, chip, make_mesh(job.mesh, devices), tokens, job.kind == "decode"),
                cost(),
            ]
        )
    )
