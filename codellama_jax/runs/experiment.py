"""Runs an experiment: its documents and tokenizer, the stages of each arm, probes, report.

The same command started again resumes it.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

import jax

from codellama_jax.checkpoints.folder import RunFolder
from codellama_jax.checkpoints.loading import keep_compiled
from codellama_jax.config import Experiment
from codellama_jax.report.findings import FindingOf
from codellama_jax.report.report import write_report
from codellama_jax.runs import data_stages
from codellama_jax.runs.corpus import (
    Corpus,
    check_prepared,
    check_same_tokenizer,
    check_tokenizer,
)
from codellama_jax.runs.folder import check_folder, check_other_runs, opened_folder
from codellama_jax.runs.seeds import check_processes, train_side_by_side
from codellama_jax.runs.stages import resolve
from codellama_jax.runs.training import run_stages
from codellama_jax.sharding import peers
from codellama_jax.sharding.hosts import on_first_host, say, start_distributed
from codellama_jax.sharding.mesh import make_mesh, on_mesh
from codellama_jax.system import locks
from codellama_jax.system.files import user_path, write_json
from codellama_jax.training.loop import Stopped

if TYPE_CHECKING:
    from codellama_jax.runs.commands import RunOptions


def run_experiment(
    experiment: Experiment, claim: str, finding: FindingOf | None, choice: RunOptions
) -> None:
    """Runs the arms (or the one that `choice` names), writes their probes and the report.

    Exits with 128 + signal after a stop that saved, and with `peers.PEER_DIED` after the death of
    another host.

    Args:
      experiment: the arms, their corpus and tokenizer.
      claim: the docstring of the experiment's file, for the report.
      finding: the function that compares the arms, if the file has one.
      choice: the options of the verb `run`.
    """
    started = time.monotonic()
    start_distributed()
    keep_compiled(choice.cache)
    folder = RunFolder(user_path(choice.out or f"runs/{experiment.name}-{experiment.scale}"))
    # Mistakes are reported in the order in which they can be found: before documents are prepared,
    # and before anything is written.
    on_first_host(lambda: locks.check_free(folder.path))
    check_processes(choice.processes)
    if choice.reuse:
        check_other_runs(choice.reuse)
    mesh = make_mesh(experiment.mesh)
    stages = resolve(experiment, choice.arms_of(experiment), folder, mesh)
    # With --fresh nothing that is here counts.
    to_train = [s for s in stages if choice.fresh or not s.folder.is_trained()]
    for stage in to_train:
        stage.check()
        for data in stage.data:
            data_stages.check(data)
    # Also checked once more with the lock held, when another process may have been faster.
    if not choice.fresh:
        check_folder(experiment, folder)
    corpora = check_prepared(experiment, to_train, folder.corpora, choice.fresh)
    corpus = Corpus(experiment, choice.cache)
    check_tokenizer(experiment, corpus.tokenizer)
    check_same_tokenizer(experiment, corpus.tokenizer, [s.stage for s in to_train])
    with opened_folder(experiment, folder, choice.fresh):
        if corpora and jax.process_index() == 0:
            write_json(folder.corpora, corpora)
        try:
            with on_mesh(mesh), peers.ending_with_peers():
                if choice.processes > 1:
                    train_side_by_side(experiment, folder, choice)
                # Stages that other processes have finished are skipped.
                run_stages(experiment, corpus, folder, stages, choice.reuse)
        except Stopped as stop:
            name = signal.Signals(stop.args[0]).name
            text = f"stopped by {name} and saved: run the same command again to continue"
            # As a shell reports it, so that a job queue sees that the run was stopped.
            print(text, file=sys.stderr)
            sys.exit(128 + stop.args[0])
        if jax.process_index() == 0:
            say("writing the report")
            write_report(folder.path, experiment, claim, finding, time.monotonic() - started)
            say(f"report: {folder.report_html}")
