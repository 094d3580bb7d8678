"""Runs vectors files against the compiled programs: scripts/vectors FILE..."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.vectors.places import VectorsError
from tests.vectors.sections import read
from tests.vectors.steps import Case

EPILOG = "exit codes: 0 every case passed, 1 a case failed, 2 a file cannot be read"


def main(arguments: list[str]) -> int:
    """Reads every file before any case is run."""
    parser = argparse.ArgumentParser("scripts/vectors", description=__doc__, epilog=EPILOG)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument("-k", metavar="TEXT", help="only cases whose section/id has this in it")
    parser.add_argument("-v", action="store_true", help="a line for each case that passes, too")
    options = parser.parse_args(arguments)
    try:
        cases = [(path, case) for path in options.files for case in _read(path)]
    except VectorsError as err:
        print(f"scripts/vectors: {err}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("scripts/vectors: programs are loaded by root only", file=sys.stderr)
        return 2
    wanted = [(path, case) for path, case in cases if not options.k or options.k in case.id]
    if not wanted:
        print("scripts/vectors: there is no case to run", file=sys.stderr)
        return 2
    tell_left([case for _, case in wanted])
    several = len(options.files) > 1
    return run([(f"{path}: " if several else "", case) for path, case in wanted], options.v)


def _read(path: Path) -> list[Case]:
    try:
        return read(path)
    except VectorsError as err:
        raise VectorsError(f"{path}: {err}") from None


def tell_left(cases: list[Case]) -> None:
    """One line for each reason why cases of a section are left to later."""
    for (section, reason), number in Counter((c.section, c.left) for c in cases if c.left).items():
        names = [c.name for c in cases if (c.section, c.left) == (section, reason)]
        named = f" ({', '.join(names)})" if number < 4 and section != "sync" else ""
        many = "case" if number == 1 else "cases"
        print(f"left to later: {section}: {number} {many}{named}: {reason}")


def run(cases: list[tuple[str, Case]], every: bool) -> int:
    """Plays the cases that are not left; prints each failure, and how many passed and failed."""
    from tests.vectors.playing import play
    from tests.vectors.stage import namespace, staged

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    passed = failed = 0
    with tempfile.TemporaryDirectory() as cache, staged(namespace(), Path(cache)) as stage:
        for where, case in cases:
            if case.left:
                continue
            failure = play(stage, case)
            passed, failed = passed + (failure is None), failed + (failure is not None)
            if failure:
                what = f"expected {failure.expected}, got {failure.got}"
                print(f"FAILED {where}{case.id} at {failure.place}: {what}", flush=True)
            elif every:
                print(f"passed {where}{case.id}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
