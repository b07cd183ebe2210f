"""The order to fill a middle in, and where to truncate one that does not end. Imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

FORMATS = ("PSM", "SPM")


class Order(NamedTuple):
    """The order of a prompt, and why it was chosen."""

    spm: bool
    reason: str


def without_infilling(name: str) -> str:
    """Returns the message for a model whose vocabulary has no infilling sentinels."""
    no_sentinels = "its vocabulary has no sentinels"
    return f"{name} was trained without infilling: {no_sentinels}; use complete, or another model"


def better_order(probes: Mapping[str, Any]) -> Order:
    """Returns the order in which a run's own probes filled more middles exactly.

    Equal shares are decided by the loss of the true middles. Without probes it is PSM, the
    paper's default.
    """
    shares = {name: _mean(probes, name, "exact") for name in FORMATS}
    losses = {name: _mean(probes, name, "loss") for name in FORMATS}
    psm, spm = (shares[name] for name in FORMATS)
    if psm is None or spm is None:
        return Order(False, "the paper's default, as this run has no infilling probes")
    exact = f"{100 * psm:.1f} % of held-out middles exactly in PSM order and {100 * spm:.1f} %"
    reason = f"this run's probes filled {exact} in SPM order"
    psm_loss, spm_loss = (losses[name] for name in FORMATS)
    # Exact matches decide as long as they differ; the loss has finer steps and breaks a tie.
    if psm != spm or psm_loss is None or spm_loss is None:
        return Order(spm > psm, reason)
    return Order(spm_loss < psm_loss, f"{reason}, with losses {psm_loss:.3f} and {spm_loss:.3f}")


def _mean(probes: Mapping[str, Any], name: str, measure: str) -> float | None:
    """Returns the mean of a measure in one format; None where it was not measured.

    Reads `infilling`, which holds one number per format, or else `infilling_kinds`, which holds
    one number per example.
    """
    measured = _field(probes, "infilling", name, measure)
    if _is_number(measured):
        return float(measured)
    values: list[float] = []
    kinds = _field(probes, "infilling_kinds")
    for kind in kinds if isinstance(kinds, Mapping) else ():
        examples = _field(kinds, kind, name, measure)
        if isinstance(examples, list):
            values += [value for value in examples if _is_number(value)]
    return sum(values) / len(values) if values else None


def _field(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def without_ramble(middle: str, prefix: str, suffix: str) -> str:
    """Truncates a middle that never reached EOT to what most likely belongs there.

    A hole inside a line gets one line. Otherwise complete lines are kept, up to the one with which
    the suffix continues or the first that leaves the block in which the hole is; blank lines at
    the end are left out. Monotone: appending text never takes back what this returned.
    """
    last_line = prefix.rpartition("\n")[2]
    rest, _, after = suffix.partition("\n")
    first, *lines = middle.split("\n")
    # Text on both sides of the hole in one line: anything after a line break cannot belong there.
    if not lines or (rest.strip() and last_line.strip()):
        return first
    # A model that rambles on usually repeats the suffix. Its first line marks the end of the
    # middle.
    following = (rest if rest.strip() else first_line(after)).strip()
    # The block that the hole is in has the indentation of the line that the middle continues.
    indentation = indentation_of(last_line + first)
    kept = [first]
    for line in lines[:-1]:  # the last one may be incomplete
        # Blank lines have no indentation and do not end a block.
        leaves_block = line.strip() and indentation_of(line) < indentation
        if leaves_block or (following and line.strip() == following):
            break
        kept.append(line)
    while len(kept) > 1 and not kept[-1].strip():
        kept.pop()
    text = "\n".join(kept)
    # Where the suffix continues in this line, it must begin on a line after the kept ones.
    return text + "\n" if rest.strip() else text


def indentation_of(line: str) -> int:
    """Returns the number of white-space characters at the start of a line."""
    return len(line) - len(line.lstrip())


def first_line(text: str) -> str:
    """Returns the first line that is not blank; "" if all are."""
    for line in text.split("\n"):
        if line.strip():
            return line
    return ""
