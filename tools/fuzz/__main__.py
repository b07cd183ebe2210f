"""Tries random faulty inputs: `JAX_PLATFORMS=cpu nice python -m tools.fuzz --count 12000`.

Prints one row of a table for each area, and for each fault the option that reproduces it, such as
`python -m tools.fuzz --replay tokenizers:1:314`. An input depends only on its area, seed and
number. `--seed 1 --seed 2` tries the same number of other inputs with each seed; the last column
of the table lists the seeds. The exit code is 1 if there are faults.

`--apart` runs each input in a separate process, which must end as well. It finds threads that wait
forever and crashes of native code, and takes longer for inputs that start JAX.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tools.fuzz import harness
from tools.fuzz.areas import AREAS, SHARES

TITLES = "area          inputs accepted  refused   faults  slowest s  its input             seeds"
Attempt = Callable[[str, harness.MakeInput, int, int], harness.Outcome]
# Address space in bytes. An input that allocates more gets a MemoryError, which is a fault;
# without the limit Linux would kill the process.
MEMORY = 2**35


@dataclass
class Figures:
    """The numbers of an area's inputs by outcome."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    faults: int = 0
    slowest: float = 0.0  # seconds
    slowest_input: str = ""  # in the form of --replay

    def add(self, other: Figures) -> None:
        """Adds the counts of other inputs."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults += other.faults
        if other.slowest > self.slowest:
            self.slowest, self.slowest_input = other.slowest, other.slowest_input

    def row(self, name: str, seeds: list[int]) -> str:
        """Returns the row of the table for the area `name`, with the columns of TITLES."""
        counts = f"{self.inputs:8,} {self.accepted:8,} {self.refused:8,} {self.faults:8,}"
        listed = " ".join(map(str, seeds))
        return f"{name:11} {counts} {self.slowest:10.2f}  {self.slowest_input:20}  {listed}"


def main() -> int:
    """Tries the inputs that the arguments select. Returns the exit code."""
    arguments = parsed()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if arguments.replay:
        name, seed, number = arguments.replay.split(":")
        outcome = attempt_of(arguments)(name, AREAS[name], int(seed), int(number))
        print(f"exit code {outcome.code} after {outcome.seconds:.2f} s: {outcome.line}")
        print(outcome.fault or "no fault")
        return int(bool(outcome.fault))
    names = arguments.area or list(AREAS)
    total = sum(SHARES[name] for name in names)
    seeds = arguments.seed or [0]
    sums = Figures()
    print(TITLES, flush=True)
    for name in names:
        # Areas share the count by the time that their inputs take: see SHARES.
        count = round(arguments.count * SHARES[name] / total)
        numbers = range(arguments.start, arguments.start + count)
        figures = run_area(name, seeds, numbers, attempt_of(arguments))
        # Printed area by area, so that a long run shows where it is.
        print(figures.row(name, seeds), flush=True)
        sums.add(figures)
    print(sums.row("total", seeds), flush=True)
    return int(sums.faults > 0)


def parsed() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description=__doc__,
        epilog="areas:\n" + "\n".join(described()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seed", type=int, action="append", help="random seed, default 0; repeatable")
    add("--count", type=int, default=10_000, help="inputs of all areas per seed")
    add("--start", type=int, default=0, help="number of the first input of an area")
    only = "try only this area; repeatable"
    add("--area", action="append", choices=list(AREAS), metavar="AREA", help=only)
    add("--replay", metavar="AREA:SEED:NUMBER", help="try one input and print its outcome")
    add("--apart", action="store_true", help="run each input in a forked process")
    return parser.parse_args()


def attempt_of(arguments: argparse.Namespace) -> Attempt:
    """Returns the function that tries one input."""
    return harness.attempt_apart if arguments.apart else harness.attempt


def described() -> list[str]:
    """Returns a line for each area: its name and the first line of its function's docstring."""
    width = max(map(len, AREAS))
    lines = []
    for name, make in AREAS.items():
        lines.append(f"  {name:{width}}  {(make.__doc__ or '').splitlines()[0]}")
    return lines


def run_area(name: str, seeds: list[int], numbers: range, attempt: Attempt) -> Figures:
    """Tries the inputs of an area with each seed. Prints the faults and returns the figures."""
    figures = Figures()
    for seed in seeds:
        for number in numbers:
            outcome = attempt(name, AREAS[name], seed, number)
            if outcome.fault:
                print(f"FAULT {name}:{seed}:{number}\n{outcome.fault.rstrip()}", flush=True)
            # An outcome is exactly one of the three: a fault counts as neither accepted nor
            # refused.
            counts = Figures(1, 0, 0, 0, outcome.seconds, f"{name}:{seed}:{number}")
            counts.faults = int(bool(outcome.fault))
            counts.accepted = int(not outcome.fault and not outcome.code)
            counts.refused = int(not outcome.fault and bool(outcome.code))
            figures.add(counts)
    return figures


if __name__ == "__main__":
    sys.exit(main())
