"""The layout of a run's folder: the only module that spells a path in one.

    config.json  tokenizer.model  corpus.json  corpora.json
    report.md  report.html  finding.json
    figures/NAME.png
    ARM/STAGE/   or ARM@1/STAGE/ of a further seed
        config.json  identity.txt  metrics.jsonl  tensorboard/  probes.json  done.json
        checkpoints/step_N/

A byte-level tokenizer is a tokenizer.json. The folder of a data stage holds config.json,
identity.txt, done.json with the counts of its steps, and files of JSON lines. A stage that equals
one that was trained elsewhere has no checkpoints: its done.json names the folder of the other.
Starts no JAX.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from etils import epath

from codellama_jax.checked import FieldError
from codellama_jax.config import Experiment, Stage, from_dict, to_dict
from codellama_jax.data_stage import DataStage
from codellama_jax.errors import UserError
from codellama_jax.system.files import (
    check_no_pipes,
    delete_file,
    is_bucket,
    read_file,
    read_json,
    read_state,
    reason,
    user_path,
    write_file,
    write_json,
)
from codellama_jax.tokenizers import files as tokenizers
from codellama_jax.tokenizers.base import Tokenizer

IMPORT_FIRST = "published weights become a run with `launch.py import WEIGHTS RUN`"
CONFIG = "config.json"
IDENTITY = "identity.txt"
IDENTITY_FORM = re.compile("[0-9a-f]{32}")
STEP_FORM = re.compile(r"step_(\d+)")
COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint on an object store


def seeded(arm: str, number: int) -> str:
    """Returns the name of an arm's folder for one of its seeds, counted from 0."""
    return f"{arm}@{number}" if number else arm


@dataclass(frozen=True)
class Folder:
    """The folder of a run or of a stage, each of which holds its config."""

    path: epath.Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> epath.Path:
        """The config of the run or the stage, as `to_dict` writes it."""
        return self.path / CONFIG


@dataclass(frozen=True)
class StageFolder(Folder):
    """The folder of one stage of a run."""

    @property
    def model_name(self) -> str:
        """The name of the stage's model, RUN/ARM/STAGE, by which its samples are known."""
        return "/".join(self.path.parts[-3:])

    @property
    def identity_file(self) -> epath.Path:
        """The identity of the stage, a hash that equal stages share."""
        return self.path / IDENTITY

    @property
    def metrics(self) -> epath.Path:
        """Loss, learning rate and more, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> epath.Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def probes(self) -> epath.Path:
        """The measures of the probes, and the options that they were measured with."""
        return self.path / "probes.json"

    @property
    def done(self) -> epath.Path:
        """The mark of a finished stage, or the path to an equal one that was trained elsewhere."""
        return self.path / "done.json"

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> epath.Path:
        """Returns the folder of the checkpoint of a step."""
        return self.checkpoints / f"step_{step}"

    def steps(self, step: int | None = None) -> list[int]:
        """Returns the steps of the finished checkpoints, the newest first, or only `step`.

        Raises UserError if there is none.
        """
        steps = sorted(self._all_steps(), reverse=True)
        if not steps:
            raise UserError(f"no checkpoint in {self}: give the folder of a run that has trained")
        if step is not None and step not in steps:
            existing = ", ".join(map(str, reversed(steps)))
            raise UserError(f"{self} has no checkpoint of step {step}: it has {existing}")
        return steps if step is None else [step]

    def _all_steps(self) -> list[int]:
        if not self.checkpoints.exists():
            return []
        check_no_pipes(self.checkpoints)
        steps = []
        try:
            for path in self.checkpoints.iterdir():
                name = STEP_FORM.fullmatch(path.name)
                if name and path.is_dir() and self._is_committed(path):
                    steps.append(int(name[1]))
        except OSError as error:
            raise UserError(f"cannot read {self.checkpoints}: {reason(error)}") from error
        return steps

    def _is_committed(self, checkpoint: epath.Path) -> bool:
        """Returns whether a checkpoint is completely written."""
        # Locally it has another name until then; an object store cannot rename.
        return not is_bucket(checkpoint) or (checkpoint / COMMITTED).exists()

    def trained(self) -> StageFolder:
        """Returns the folder where the stage was trained: this one, or the one done.json names.

        That one may have been begun, and later read from an equal stage too: its done.json then
        names the next folder. A damaged done.json counts as absent: the stage is then resumed from
        its last checkpoint. Raises UserError if done.json names an object store that cannot be read
        here.
        """
        folder, seen = self, {self}
        # Folders that name each other, as after a copy, end where the circle closes.
        while (target := folder._target()) and target not in seen:
            folder = target
            seen.add(folder)
        return folder

    def _target(self) -> StageFolder | None:
        """Returns the folder that done.json names, None if it names none that holds the stage."""
        state = read_state(self.done) or {}
        target, identity = state.get("at"), state.get("identity")
        if not isinstance(target, str):
            return None
        if not is_bucket(target):
            # Relative to this folder: the two may have been moved together.
            folder = StageFolder(epath.Path(os.path.normpath(self.path / target)))
        else:
            try:
                folder = StageFolder(user_path(target))
            except UserError as error:
                raise UserError(f"{self.done}: {error}") from None
        # That run may have been set aside, and another one started in its folder. Older versions
        # wrote no identity.
        return None if identity and folder.identity() != identity else folder

    def is_trained(self) -> bool:
        """Returns whether the stage has finished, here or where the folder points."""
        state = read_state(self.trained().done)
        # Where the path itself is left, it leads to no folder of this stage.
        return state is not None and "at" not in state

    def identity(self) -> str:
        """Returns the identity that the stage had when it was begun.

        It is "" where the file is missing, as in a run of an old version, or damaged.
        """
        try:
            text = read_file(self.identity_file).decode("ascii", "replace")
        except UserError:
            return ""
        return text if IDENTITY_FORM.fullmatch(text) else ""

    def resumed_identity(self) -> str:
        """Returns the identity that a resume keeps, "" for a stage without a checkpoint."""
        return self.identity() if self._all_steps() else ""

    def begin(self, stage: Stage | DataStage, identity: str) -> None:
        """Makes the folder of a stage to run. One with a checkpoint keeps its identity."""
        delete_file(self.done)  # it named a stage that is gone, or it is damaged
        # The config comes before the identity: `stages` lists folders that have an identity.
        write_json(self.config, to_dict(stage))
        # A resumed stage keeps its identity, also where this version would compute another one.
        # Without a checkpoint nothing is resumed: its documents and first weights are today's.
        if not self.resumed_identity():
            write_file(self.identity_file, identity)

    def repair_config(self, stage: Stage) -> None:
        """Writes the config again if it is damaged or missing."""
        if read_state(self.config) is None:
            write_json(self.config, to_dict(stage))

    def point_to(self, trained: StageFolder, stage: Stage | DataStage) -> None:
        """Makes the folder of a stage that was trained, or whose data were written, elsewhere.

        The path is relative where both folders are local, so that they can move together.
        """
        # No relative path leads from a local folder into an object store.
        remote = is_bucket(self.path) or is_bucket(trained.path)
        target = str(trained) if remote else os.path.relpath(trained.path, self.path)
        write_json(self.config, to_dict(stage))
        # Last: after a kill before this line the stage is only unfinished.
        write_json(self.done, {"at": target, "identity": trained.identity()})

    def mark_done(self, step: int, tokens: int) -> None:
        """Marks the stage as trained to its last step."""
        write_json(self.done, {"step": step, "tokens": tokens})

    def mark_written(self, counts: dict[str, Any]) -> None:
        """Marks the data of a data stage as complete."""
        write_json(self.done, {"counts": counts})

    def read_config(self) -> Stage:
        """Returns the config of the stage. Raises UserError if it is damaged."""
        config = read_json(self.config)
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is not the config of a stage")
        return _built(Stage, self.config, config)

    def read_probes(self) -> dict[str, Any]:
        """Returns the measures of the probes; {} if none ran or their file is damaged."""
        # A stage that points to an equal one may have been probed with other options here.
        for path in (self.probes, self.trained().probes):
            probes = read_state(path)
            if probes is not None:
                return probes
        return {}

    def load_tokenizer(self) -> Tokenizer:
        """Loads the tokenizer of the run that holds this folder. Raises UserError without one."""
        # The folder may be that of a run or of a stage in it.
        for parent in (self.path, *self.path.parents):
            for path in RunFolder(parent).tokenizers:
                if path.exists():
                    return tokenizers.load(path)
        raise UserError(f"{self} has no {' or '.join(tokenizers.RUN_FILES)}")


@dataclass(frozen=True)
class RunFolder(Folder):
    """The folder of a run."""

    @property
    def tokenizers(self) -> list[epath.Path]:
        """The files of which one is the tokenizer of all stages: one per kind."""
        return [self.path / name for name in tokenizers.RUN_FILES]

    def save_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Writes the tokenizer of all stages."""
        tokenizer.save(self.path / tokenizer.file_name)

    @property
    def corpus(self) -> epath.Path:
        """The numbers of files and documents of each source."""
        return self.path / "corpus.json"

    @property
    def corpora(self) -> epath.Path:
        """The fingerprints of the prepared corpora that the run was started with, by source."""
        return self.path / "corpora.json"

    @property
    def report_markdown(self) -> epath.Path:
        """The report, with links to the figures."""
        return self.path / "report.md"

    @property
    def report_html(self) -> epath.Path:
        """The report as one file."""
        return self.path / "report.html"

    @property
    def finding(self) -> epath.Path:
        """The numbers that decide the verdict of the experiment."""
        return self.path / "finding.json"

    @property
    def set_aside(self) -> epath.Path:
        """A mark: no other run reads the stages of this one any more."""
        return self.path / "set_aside"

    def figure(self, name: str) -> epath.Path:
        """Returns the file of a figure of the report."""
        return self.path / "figures" / f"{name}.png"

    def stage(self, arm: str, stage: str) -> StageFolder:
        """Returns the folder of a stage; `arm` may name a further seed, as arm@1."""
        return StageFolder(self.path / arm / stage)

    def stages(self) -> list[StageFolder]:
        """Returns the folders of the stages that were begun here."""
        return [StageFolder(path.parent) for path in sorted(self.path.glob(f"*/*/{IDENTITY}"))]

    def trained_stages(self) -> dict[str, StageFolder]:
        """Returns the finished stages, by identity; leaves out those of a damaged identity file."""
        trained = {}
        for stage in self.stages():
            identity, where = stage.identity(), stage.trained()
            # A stage that was begun here may have been read from an equal one since: the identity
            # stays, and there are checkpoints of the steps until then at most.
            if identity and where.is_trained() and where.identity() == identity:
                trained[identity] = where
        return trained

    def claim(self, identity: str) -> epath.Path:
        """Returns the lock file of the stages of this identity, which one process trains."""
        return self.path / f".{identity}.lock"

    def find_stage(self, arm: str = "", stage: str = "") -> tuple[StageFolder, Stage]:
        """Returns the folder and config of a stage.

        By default it is the last trained stage of the first arm. This may be the folder of a stage
        itself. The folder returned may only point to the one where an equal stage was trained
        (`StageFolder.trained`). Raises UserError if there is no such stage.
        """
        if not self.path.exists():
            raise UserError(
                f"there is no folder {self}: name the folder of a run or of one of its stages"
            )
        if not self.config.exists():
            problem = f"{self} is not the folder of a run: it has no {CONFIG}"
            raise UserError(f"{problem}; {IMPORT_FIRST}")
        config = read_json(self.config)
        if not isinstance(config, dict):
            raise UserError(f"{self.config} is not the config of a run or of a stage")
        # transformers names the architecture, which neither a run nor a stage does.
        if "model_type" in config and "model" not in config:
            problem = f"{self} is not the folder of a run: its {CONFIG} is transformers'"
            raise UserError(f"{problem}; {IMPORT_FIRST}")
        # The config of a stage: its folder was named instead of the run's.
        if "arms" not in config:
            if arm or stage:
                options = f"--arm {arm}" if arm else f"--stage {stage}"
                raise UserError(
                    f"{self} is the folder of a stage, in which {options} selects nothing: name the"
                    " folder of the run instead, or leave out --arm and --stage"
                )
            return StageFolder(self.path), _built(Stage, self.config, config)
        # Probes are not needed here, and other versions may write them in another form.
        others = {name: value for name, value in config.items() if name != "probes"}
        arms = _built(Experiment, self.config, others).arms
        arm = arm or next(iter(arms))
        # ARM@1 names the second seed, which has the chain of the arm itself.
        chain = arms.get(arm.partition("@")[0], {})
        if not chain or (stage and stage not in chain):
            names = []
            for existing_arm, stages in arms.items():
                names += [f"{existing_arm}/{name}" for name in stages]
            existing = ", ".join(names)
            raise UserError(f"{self} has no {arm}/{stage}: it has {existing}")
        trained = [name for name in chain if self.stage(arm, name).is_trained()]
        # A stage that is named may still be training: its newest checkpoint is used.
        if not stage and not trained:
            raise UserError(
                f"no stage of {self}/{arm} has finished yet: start the same command again to"
                " resume it"
            )
        stage = stage or trained[-1]
        return self.stage(arm, stage), chain[stage]


def find_trained(run: epath.Path, arm: str = "", stage: str = "") -> tuple[StageFolder, Stage]:
    """Returns the folder in which a stage of a run was trained, and its config.

    Raises UserError like `RunFolder.find_stage`.
    """
    folder, config = RunFolder(run).find_stage(arm, stage)
    return folder.trained(), config


def trained_identity(run: epath.Path) -> str:
    """Returns the identity of the trained stage of a run, "" where there is no run or it has none.

    A run that was trained again in the same folder has another one.
    """
    try:
        return find_trained(run)[0].identity()
    except UserError:
        return ""


def trained_under(runs: epath.Path) -> dict[str, StageFolder]:
    """Returns the finished stages of the runs in a folder, by identity.

    Leaves out runs that were set aside, and stages whose identity file is damaged.
    """
    trained = {}
    # Sorted, so that the same run is chosen on every start where several have an equal stage.
    for path in sorted(runs.glob("*")):
        run = RunFolder(path)
        if not run.set_aside.exists():
            trained.update(run.trained_stages())
    return trained


def _built(cls: Any, path: epath.Path, values: Any) -> Any:
    """Returns a config from the JSON values of a file. Raises UserError that names the file."""
    try:
        return from_dict(cls, values)
    except FieldError as error:
        raise UserError(f"{path}: {error}") from None
