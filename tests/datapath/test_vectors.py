"""The whole vectors files, a test a case: IPVS's own cases on the compiled programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datapath.harness import inside
from tests.vectors.playing import play
from tests.vectors.sections import LATER, read
from tests.vectors.stage import Stage, namespace, staged
from tests.vectors.steps import Case

VECTORS = Path(__file__).parent.parent / "vectors/ipvs-vectors.yaml"
# found by kernel IPVS and lvsxdp side by side
DERIVED = VECTORS.with_name("derived.yaml")
CASES = [*read(VECTORS), *read(DERIVED)]
# cases of the sections that are run which need what is not there yet
LEFT = {"forwarding/icmp_nat[2]"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The programs on a stage of their own, run on one CPU."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        with staged(namespace(), tmp_path_factory.mktemp("cache")) as made:
            yield made
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id) for case in CASES if not case.left]
)
def test_a_case_goes_as_in_the_kernel(stage: Stage, case: Case) -> None:
    with inside(stage.name):
        assert play(stage, case) is None


def test_no_case_is_left_out_but_those_that_are_known_to_need_more() -> None:
    assert {case.id for case in CASES if case.left and case.section not in LATER} == LEFT
