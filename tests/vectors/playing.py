"""Plays cases on a stage."""

from __future__ import annotations

import dataclasses

from lvsxdp.errors import LvsxdpError
from tests.vectors import acts, checks, hashing, leaving
from tests.vectors.lab import Lab
from tests.vectors.runs import Failed, Run, perform
from tests.vectors.stage import Stage
from tests.vectors.steps import Case

# whose steps `perform` knows by their being imported
PERFORMERS = (acts, checks, hashing, leaving)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Where a case went another way: what it expected, and what came."""

    place: str
    expected: str
    got: str


def play(stage: Stage, case: Case) -> Failure | None:
    """Plays a case; its first failure, or None where all is as it expects."""
    lab = Lab(stage)
    run, place = Run(lab, case.services), "services"
    try:
        lab.begin(case)
        for step in case.steps:
            place = step.place
            perform(step.act, run)
    except Failed as err:
        return Failure(place, err.expected, err.got)
    except LvsxdpError as err:
        return Failure(
            place, "a change that is carried out", f"a refusal: {' '.join(str(err).split())}"
        )
    return None
