"""Runs scripts against both twins in one guest, and says in what they differ.

python -m tests.twin.run --seed 1 --scripts 10 --steps 50
python -m tests.twin.run --replay FILE
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lvsxdp.errors import LvsxdpError
from tests.twin import balancer, generator, ipvs, topology
from tests.twin.balancer import Twin
from tests.twin.script import Step, parse
from tests.twin.topology import Wire
from tests.twin.trial import Differs, Trial

CACHE = Path("/var/cache/lvsxdp")
WARM_UP = (
    "mark add 1 udp 192.0.2.10 53-53",
    "service add mark:1 scheduler rr persistence 10 255.255.255.0",
    "backend add mark:1 10.0.0.11 weight 1",
    "backend edit mark:1 10.0.0.11 weight 2",
    "send udp 198.51.100.1:20000 192.0.2.10:53 - x1",
    "set expire_quiescent_template 1",
    "wait 1",
    "service delete mark:1",
)


def _scripts(options: argparse.Namespace) -> Iterator[tuple[str, Sequence[Step]]]:
    if options.replay:
        yield str(options.replay), parse(options.replay.read_text().splitlines())
        return
    for seed in range(options.seed, options.seed + options.scripts):
        yield f"seed {seed}", generator.script(seed, options.steps)


def _warm_up(twin: tuple[Twin, Wire]) -> None:
    """Does everything once: what is read from disk at its first use takes the clock along."""
    with ipvs.judge() as judge, contextlib.suppress(Differs):
        twin[0].clear()
        Trial(judge, twin).run(parse(WARM_UP))


def _run(steps: Sequence[Step], twin: tuple[Twin, Wire], aloud: bool = False) -> Trial:
    """Runs a script through both; Differs where they part."""
    with ipvs.judge() as judge:
        twin[0].clear()
        trial = Trial(judge, twin, aloud)
        trial.run(steps)
        return trial


def _judge(
    name: str, steps: Sequence[Step], twin: tuple[Twin, Wire], options: argparse.Namespace
) -> bool:
    """Whether the twins agree all through a script; says so, or how to see it again."""
    begun = time.perf_counter()
    try:
        trial = _run(steps, twin, bool(options.replay))
    except Differs as err:
        steps = steps[: err.number or len(steps)]
        print(f"{name}: the twins differ\n{err}", flush=True)
        if options.shrink:
            steps, err = _shrunk(steps, err, twin)
            print(f"\nin short:\n{err}")
        print(f"# {name}", *steps, sep="\n", flush=True)
        return False
    took = time.perf_counter() - begun
    packets = ", ".join(f"{count} {what}" for what, count in sorted(trial.outcomes.items()))
    print(f"{name}: {len(steps)} steps in {took:.0f} s; packets: {packets}", flush=True)
    return True


def _shrunk(
    steps: Sequence[Step], err: Differs, twin: tuple[Twin, Wire]
) -> tuple[Sequence[Step], Differs]:
    """The script without what it differs without, tried in ever smaller pieces."""
    size = len(steps) // 2
    while size:
        at = len(steps) - size
        while at >= 0:
            try:
                _run([*steps[:at], *steps[at + size :]], twin)
            except Differs as found:
                steps, err = [*steps[:at], *steps[at + size :]], found
                steps = steps[: err.number or len(steps)]
            except (LvsxdpError, OSError):
                # it names what was never added
                pass
            at = min(at, len(steps)) - size
        size //= 2
    return steps, err


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twin", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first script")
    parser.add_argument("--scripts", type=int, default=10, help="how many, each of the next seed")
    parser.add_argument("--steps", type=int, default=50, help="of each script")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this script instead")
    parser.add_argument("--shrink", action="store_true", help="a script that fails, to its core")
    parser.add_argument("--compile", action="store_true", help="compile for the guest, no more")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where compiled programs are")
    return parser.parse_args(words)


def main() -> int:
    """The exit code: 0 where no script finds a difference."""
    options = _options()
    if options.compile:
        balancer.compile_ahead(options.cache)
        return 0
    ipvs.load_modules()
    passed = failed = 0
    with topology.outside(), balancer.twin(options.cache) as twin:
        _warm_up(twin)
        for name, steps in _scripts(options):
            if _judge(name, steps, twin, options):
                passed += 1
            else:
                failed += 1
    print(f"{passed} scripts passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
