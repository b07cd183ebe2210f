"""The verb `compile`: compiles a program for a TPU pod that is not attached, and prints figures.

A program is a stage's train step, or prefill or a decoding step of a stage's model. Compiling needs
no TPU, but minutes of CPU time. Figures are the compiler's estimates, and those of the bandwidth
model (interconnect.py) for the collectives, which the compiler does not estimate.
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import sys
from typing import Any, Literal

from jax.sharding import Mesh

from codellama_jax.checked import FieldError
from codellama_jax.compile import program, target
from codellama_jax.compile.options import INFERENCE
from codellama_jax.compile.report import Report, TooLarge, examine, gib, lines
from codellama_jax.config import Experiment, MeshConfig, ModelConfig, Stage
from codellama_jax.errors import UserError
from codellama_jax.models.accounting import flops_per_token, training_flops
from codellama_jax.sharding.mesh import make_mesh
from kernels.static.chips import CHIPS

TOO_LARGE = 3  # exit code of a program that does not fit the memory
SEARCHED = 16  # largest number of programs that --search compiles
# Settings that --search combines. The policy "none", which keeps every activation, is left out.
TENSOR_SIZES, CONTEXT_SIZES, MICRO_BATCHES = (1, 2, 4, 8), (1, 2), (1, 2, 4)
REMAT_POLICIES: tuple[Literal["none", "dots", "full"], ...] = ("dots", "full")


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile for one pod.

    Args:
      stage: the stage, whose model prefill and decoding use.
      kind: `train`, `prefill` or `decode`.
      mesh: axes of the pod's mesh.
      batch: sequences of prefill and decoding.
      context: tokens of a prompt to prefill, or in the cache to decode after.
    """

    stage: Stage
    kind: str
    mesh: MeshConfig
    batch: int
    context: int


def choose_stage(experiment: Experiment, arm: str, name: str) -> Stage:
    """Returns the stage to compile.

    Args:
      experiment: the experiment.
      arm: name of an arm, "" for all arms.
      name: name of a stage, looked up in the arms in their order; or prefill or decode, which take
        the last stage of the last arm.

    Raises:
      UserError: for an unknown name.
    """
    chains = []
    for arm_name, chain in experiment.arms.items():
        if arm in ("", arm_name):
            chains.append(chain)
    if name in INFERENCE:
        return list(chains[-1].values())[-1]
    stages: dict[str, Stage] = {}
    # Later updates overwrite earlier ones, so the first arm that has a stage comes last.
    for chain in reversed(chains):
        stages.update(chain)
    if name not in stages:
        raise UserError(f"no stage {name!r}: there are {', '.join([*stages, *INFERENCE])}")
    return stages[name]


def inference_flops(model: ModelConfig, job: Job, causal: bool) -> float:
    """Returns the FLOPs of one prefill, or of one decoding step.

    That is a third of training's FLOPs per token, because the backward pass takes two thirds. A
    prefill computes the logits of one token per prompt.
    """
    if job.kind == "prefill":
        read = job.context * flops_per_token(model, job.context, causal) / 3
        head = 2 * model.vocab_size * model.d_model  # FLOPs of the logits of one token
        return job.batch * (read - (job.context - 1) * head)
    # The one new token reads every token in the cache: no score is masked.
    return job.batch * flops_per_token(model, job.context, causal=False) / 3


def compile_job(job: Job, chip: str, mesh: Mesh, cache: str) -> tuple[Report, int]:
    """Compiles a program and returns its figures and the number of tokens per step.

    Args:
      job: the program.
      chip: a key of `chips.CHIPS`.
      mesh: mesh of the pod's devices.
      cache: folder that keeps the cycles of kernels.
    """
    model, data = job.stage.model, job.stage.data
    if job.kind == "train":
        lowered = program.lower_train_step(job.stage, mesh)
        tokens = data.batch_size * data.seq_len
        # Both counts are reported, because published MFUs use one or the other.
        full = tokens * training_flops(job.stage, causal=False)
        causal = tokens * training_flops(job.stage, causal=True)
    else:
        full = inference_flops(model, job, causal=False)
        causal = inference_flops(model, job, causal=True)
        if job.kind == "prefill":
            lowered = program.lower_prefill(model, job.batch, job.context, mesh)
            tokens = job.batch * job.context
        else:
            lowered = program.lower_decode(model, job.batch, job.context, mesh)
            tokens = job.batch
    flops = full / mesh.size, causal / mesh.size
    return examine(lowered, chip, mesh, flops, cache), tokens


def candidates(job: Job, devices: int) -> list[Job]:
    """Returns the programs that --search compiles, the most promising ones first.

    They combine tensor and context axes, rematerialization policies and micro-batches. Combinations
    that do not divide the model or the batch are left out.
    """
    jobs = []
    model, batch = job.stage.model, job.stage.data.batch_size
    # A single key head is replicated, and its query heads are sharded.
    heads = model.n_kv_heads if model.n_kv_heads > 1 else model.n_heads
    settings = itertools.product(TENSOR_SIZES, CONTEXT_SIZES, REMAT_POLICIES, MICRO_BATCHES)
    for tensor, context, remat, micro_batches in settings:
        if devices % (tensor * context):
            continue
        rows = devices // (tensor * context)  # devices along data and fsdp
        # fsdp shards the width of the model, and tensor the heads; an uneven shard is not compiled.
        divides_model = model.d_model % rows == 0 and heads % tensor == 0
        if batch % (rows * micro_batches) or not divides_model:
            continue
        stage = dataclasses.replace(
            job.stage,
            model=dataclasses.replace(model, remat=remat),
            micro_batches=micro_batches,
        )
        # fsdp = -1 takes all devices that the other axes leave.
        mesh = MeshConfig(data=job.mesh.data, fsdp=-1, context=context, tensor=tensor)
        jobs.append(dataclasses.replace(job, stage=stage, mesh=mesh))

    # Rotating keys and values and gathering weights more often both cost communication.
    def cost_order(candidate: Job) -> tuple[int, int]:
        return candidate.mesh.context, candidate.stage.micro_batches

    # The sort is stable, so that among equal costs small tensor axes come first, as they were made.
    return sorted(jobs, key=cost_order)[:SEARCHED]


def search(job: Job, chip: str, devices: list, cache: str) -> tuple[Job, Report, int]:
    """Compiles the candidates and returns the one with the shortest step.

    A step's time counts the collectives that the schedule does not hide.

    Returns:
      The program, its figures, and its tokens per step.

    Raises:
      UserError: if no candidate fits.
    """
    best = None
    for candidate in candidates(job, len(devices)):
        mesh, stage = candidate.mesh, candidate.stage
        settings = (
            f"tensor {mesh.tensor} context {mesh.context} remat {stage.model.remat}"
            f" micro-batches {stage.micro_batches}"
        )
        try:
            report, tokens = compile_job(candidate, chip, make_mesh(mesh, devices), cache)
        except TooLarge:
            # The line shows that the search is still running.
            print(f"{settings}: does not fit", flush=True)
            continue
        mfu = f"{report.mfu(chip, report.overlapped)[0]:.3f}"
        print(f"{settings}: fits, MFU {mfu} (with the bandwidth model's collectives)", flush=True)
        if best is None or report.overlapped < best[1].overlapped:
            best = candidate, report, tokens
    if best is None:
        raise UserError("no combination that was tried fits: use a larger pod or a smaller batch")
    return best


def cost() -> str:
    """Returns a line with the CPU time and the memory that compiling took.

    It counts this process and the processes that it started.
    """
    this = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = this.ru_utime + this.ru_stime + children.ru_utime + children.ru_stime
    memory = gib(1024 * max(this.ru_maxrss, children.ru_maxrss))
    return f"compiled in {seconds:.0f} s of CPU time and {memory} of memory"


def compile_experiment(experiment: Experiment, choice: Any) -> None:
    """Compiles one program of an experiment and prints its figures.

    Exits with `TOO_LARGE` if the program does not fit the memory.

    Args:
      experiment: the experiment.
      choice: the options of the verb.

    Raises:
      UserError: for a stage, pod or mesh that does not exist.
    """
    stage = choose_stage(experiment, choice.arm, choice.stage)
    try:
        _compile_stage(experiment, choice, stage)
    except FieldError as error:
        raise error.under(choice.stage) from None


def _compile_stage(experiment: Experiment, choice: Any, stage: Stage) -> None:
    """Compiles one program; takes the arguments of `compile_experiment` and the chosen stage."""
    devices, chip = target.devices(choice.target, choice.slices), choice.target.partition(":")[0]
    mesh = experiment.mesh  # as in training, unless options change it
    if mesh.data == 1:
        # One copy of the model per slice, unless the experiment has more.
        mesh = dataclasses.replace(mesh, data=choice.slices)
    kind = choice.stage if choice.stage in INFERENCE else "train"
    job = Job(stage, kind, mesh, choice.batch, choice.context)
    slices = f", {choice.slices} slices" if choice.slices > 1 else ""
    name = f"{experiment.name} {experiment.scale} {choice.stage}"
    print(f"{name} on {choice.target}{slices}", flush=True)
    try:
        if choice.search:
            job, report, tokens = search(job, chip, devices, choice.cache)
        else:
            report, tokens = compile_job(job, chip, make_mesh(job.mesh, devices), choice.cache)
    except TooLarge as refusal:
        print(f"DOES NOT FIT {CHIPS[chip].hbm_gib} GiB of HBM: {refusal}\n{cost()}")
        # An exit code and not an error: the table of pods counts a program that does not fit as a
        # result.
        sys.exit(TOO_LARGE)
    is_decoding = job.kind == "decode"
    shown = lines(report, chip, make_mesh(job.mesh, devices), tokens, is_decoding)
    print("\n".join([*shown, cost()]))
