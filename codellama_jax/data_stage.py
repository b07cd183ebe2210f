"""Stages that write data instead of training: models of the same arm, or others, write a source.

`Experiment.data_stages` holds them by the name of the source that they write. A stage whose mixture
gives that source a share reads it; the data are written before that stage, once for every seed of
every arm. Starts no JAX.

To add one, write a dataclass `class Evolved(DataStage, kind="evolved")` and import it in `define`.
"""

from __future__ import annotations

import importlib
import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from codellama_jax.checked import Checked, FieldError, choices_problem

# No stage may have these names, which are options of the command line.
RESERVED = ("choice", "tokenizer", "corpus", "mesh", "probes", "seed", "seeds", "data_stages")


@dataclass(frozen=True)
class DataStage(Checked):
    """Base of the stages that write data. The fields of a subclass are its options.

    `to_dict` writes `kind`, the tag by which `from_dict` finds the class.
    """

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[DataStage]]] = {}  # by tag
    output: ClassVar[str] = ""  # the file that training reads, in the folder of the stage

    def __init_subclass__(cls, kind: str) -> None:
        cls.kind = kind
        DataStage.kinds[kind] = cls

    def models(self) -> tuple[str, ...]:
        """Returns the models that write.

        A name without a slash is that of a stage of the arm; any other one is the folder of a run,
        or the URL of a server, as the verbs take them.
        """
        raise NotImplementedError

    def amounts(self) -> str:
        """Returns how much is written, in a few words for `plan`."""
        raise NotImplementedError

    def content(self) -> str:
        """Returns a hash of the files that the stage reads; "" if it reads none."""
        return ""

    def make(self, answerers: Callable[..., Any], folder: Path, seed: int) -> dict[str, Any]:
        """Writes the files of a folder, continuing those in it, and returns counts of each step.

        Args:
            answerers: returns the `alignment.answers.Answerer` of a name in `models()`, a chat
                format and a `Sampling`. A model is loaded when it first answers.
            folder: holds the data of these models and this seed alone.
            seed: of the arm's run.
        """
        raise NotImplementedError

    @classmethod
    def class_for(cls, values: dict) -> tuple[type[DataStage], dict]:
        """Returns the class that a dict of `to_dict` describes, and the fields in it.

        Raises FieldError for an unknown tag.
        """
        define()
        fields = dict(values)
        tag = fields.pop("kind", cls.kind)
        if tag not in cls.kinds:
            raise FieldError(("kind",), choices_problem(tag, sorted(cls.kinds)))
        return cls.kinds[tag], fields

    def tag(self) -> dict[str, str]:
        """Returns the tag by which `class_for` finds the class."""
        return {"kind": self.kind}


def define() -> None:
    """Imports the stages of this library, which register themselves."""
    importlib.import_module("codellama_jax.alignment.stages")


def check_stage_name(path: tuple[str, ...], name: str) -> None:
    """Raises FieldError for a stage's name that cannot become an option and a folder."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", name) or keyword.iskeyword(name):
        allowed = "a stage's name has letters, digits and _, and is no keyword of Python"
        raise FieldError(path, f" has the stage {name[:60]!r}: {allowed}")
    if name in RESERVED:
        problem = f" has the stage {name!r}: no stage may be called {', '.join(RESERVED)}"
        raise FieldError(path, problem)


def check_data_stages(data_stages: dict[str, DataStage], arms: dict[str, dict]) -> None:
    """Raises FieldError for a data stage that has the name of a stage of an arm."""
    for name in data_stages:
        check_stage_name(("data_stages",), name)
        if any(name in stages for stages in arms.values()):
            problem = f" has {name!r}, which is also a stage of an arm: give it another name"
            raise FieldError(("data_stages",), problem)


def check_models(name: str, stage: DataStage, reader: str, stages: list[str]) -> None:
    """Raises FieldError for a model that is no stage before the one that reads the data.

    Args:
        name: of the data stage.
        stage: the data stage.
        reader: the stage that reads the data.
        stages: of its arm, in order.
    """
    before = stages[: stages.index(reader)]
    if not before:
        fix = "put a stage before it, which may have 0 steps"
        raise FieldError(("data_stages", name), f" is read by {reader}, the first of an arm: {fix}")
    for model in stage.models():
        if "/" not in model and model not in before:
            allowed = f"{', '.join(before)}, or a path or URL, which has a slash"
            problem = f" names the model {model!r}: before {reader} the arm has {allowed}"
            raise FieldError(("data_stages", name), problem)
