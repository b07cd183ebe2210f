"""Tries random faulty inputs: `nice python -m tools.fuzz --seed 0 --count 10000`.

Prints a line per area and every fault with what reproduces it: `--replay AREA:SEED:NUMBER`.
The exit code is 1 if there are faults.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections import Counter

from tools.fuzz import harness
from tools.fuzz.areas import AREAS, SHARES

MEMORY = 2**35  # bytes of addresses; an input that asks for more is a fault, not a killed process


def main() -> int:
    arguments = parsed()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if arguments.replay:
        name, seed, number = arguments.replay.split(":")
        outcome = harness.attempt(name, AREAS[name], int(seed), int(number))
        print(f"exit code {outcome.code} after {outcome.seconds:.2f} s: {outcome.line}")
        print(outcome.fault or "no fault")
        return int(bool(outcome.fault))
    names = arguments.area or list(AREAS)
    total = sum(SHARES[name] for name in names)
    faults = 0
    for name in names:
        count = round(arguments.count * SHARES[name] / total)
        faults += run_area(name, arguments.seed, range(arguments.start, arguments.start + count))
    return int(faults > 0)


def parsed() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all areas together")
    parser.add_argument("--start", type=int, default=0, help="number of the first input of an area")
    parser.add_argument(
        "--area", action="append", choices=list(AREAS), help="only this; repeatable"
    )
    parser.add_argument("--replay", metavar="AREA:SEED:NUMBER", help="one input")
    return parser.parse_args()


def run_area(name: str, seed: int, numbers: range) -> int:
    """Tries the inputs of an area and prints its figures. Returns the number of faults."""
    codes: Counter[int] = Counter()
    slowest, slowest_number, faults = 0.0, 0, 0
    for number in numbers:
        outcome = harness.attempt(name, AREAS[name], seed, number)
        codes[outcome.code] += 1
        if outcome.seconds > slowest:
            slowest, slowest_number = outcome.seconds, number
        if outcome.fault:
            faults += 1
            print(f"FAULT {name}:{seed}:{number}\n{outcome.fault.rstrip()}", flush=True)
    refused = ", ".join(f"code {code}: {n}" for code, n in sorted(codes.items()) if code)
    print(
        f"{name:12} {len(numbers):6} inputs, {codes[0]:6} succeed, refused by {refused or 'none'};"
        f" slowest {slowest:.2f} s (number {slowest_number}); {faults} faults",
        flush=True,
    )
    return faults


if __name__ == "__main__":
    sys.exit(main())
