"""Tries random faulty inputs: `JAX_PLATFORMS=cpu nice python -m tools.fuzz --count 12000`.

Prints a row per area and every fault with what reproduces it: `--replay AREA:SEED:NUMBER`, as in
`python -m tools.fuzz --replay tokenizers:1:314`. `--seed 1 --seed 2` tries the same number of
other inputs with each seed. The exit code is 1 if there are faults.

`--apart` runs each input in a process of its own, which must also end: it finds threads that wait
for ever and crashes of native code, and takes longer where an input starts JAX.

Seeds: the last column of each row lists the seeds of its inputs, so that a log of the output keeps
what reproduces it. An input is made from its area, seed and number alone (`harness.attempt`).
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
MEMORY = 2**35  # bytes of addresses; an input that asks for more is a fault, not a killed process


@dataclass
class Figures:
    """Counts of an area's inputs by outcome."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    faults: int = 0
    slowest: float = 0.0  # seconds
    slowest_input: str = ""  # as --replay takes it

    def add(self, other: Figures) -> None:
        """Adds the counts of other inputs."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.refused += other.refused
        self.faults += other.faults
        if other.slowest > self.slowest:
            self.slowest, self.slowest_input = other.slowest, other.slowest_input

    def row(self, name: str, seeds: list[int]) -> str:
        """Returns the row of the table; TITLES names its columns."""
        counts = f"{self.inputs:8,} {self.accepted:8,} {self.refused:8,} {self.faults:8,}"
        listed = " ".join(map(str, seeds))
        return f"{name:11} {counts} {self.slowest:10.2f}  {self.slowest_input:20}  {listed}"


def main() -> int:
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
        count = round(arguments.count * SHARES[name] / total)
        numbers = range(arguments.start, arguments.start + count)
        figures = run_area(name, seeds, numbers, attempt_of(arguments))
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
    only = "only this; repeatable"
    parser.add_argument("--seed", type=int, action="append", help="0 unless given; repeatable")
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all areas per seed")
    parser.add_argument("--start", type=int, default=0, help="number of the first input of an area")
    parser.add_argument("--area", action="append", choices=list(AREAS), metavar="AREA", help=only)
    parser.add_argument("--replay", metavar="AREA:SEED:NUMBER", help="one input")
    parser.add_argument("--apart", action="store_true", help="each input in a forked process")
    return parser.parse_args()


def attempt_of(arguments: argparse.Namespace) -> Attempt:
    """Returns the function that runs an input."""
    return harness.attempt_apart if arguments.apart else harness.attempt


def described() -> list[str]:
    """Returns a line for each area: its name and the first line of its function's docstring."""
    width = max(map(len, AREAS))
    lines = []
    for name, make in AREAS.items():
        lines.append(f"  {name:{width}}  {(make.__doc__ or '').splitlines()[0]}")
    return lines


def run_area(name: str, seeds: list[int], numbers: range, attempt: Attempt) -> Figures:
    """Tries the inputs of an area with each seed, prints its faults and returns its figures."""
    figures = Figures()
    for seed in seeds:
        for number in numbers:
            outcome = attempt(name, AREAS[name], seed, number)
            if outcome.fault:
                print(f"FAULT {name}:{seed}:{number}\n{outcome.fault.rstrip()}", flush=True)
            one = Figures(1, 0, 0, 0, outcome.seconds, f"{name}:{seed}:{number}")
            one.faults = int(bool(outcome.fault))
            one.accepted = int(not outcome.fault and not outcome.code)
            one.refused = int(not outcome.fault and bool(outcome.code))
            figures.add(one)
    return figures


if __name__ == "__main__":
    sys.exit(main())
