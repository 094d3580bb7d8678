"""docs/performance.md is what the results on record say."""

from __future__ import annotations

import pytest

from bench import record, report

FORM = ("case", "unit", "min", "median", "max", "net", "target", "stretch")
MACHINE = {"cpu", "cpus", "kernel", "bcc", "hz", "date"}


def test_the_page_is_what_report_makes_of_the_results_on_record() -> None:
    made = report.page(report.TEMPLATE.read_text(), report.documents())
    assert report.PAGE.read_text() == made, "run scripts/bench report"


@pytest.mark.parametrize("name", sorted(report.documents()))
def test_every_result_on_record_has_the_one_form(name: str) -> None:
    found = report.documents()[name]
    assert found["bench"] == name
    assert set(found["machine"]) == MACHINE
    assert found["rounds"] > 0
    assert all(tuple(case)[: len(FORM)] == FORM for case in found["cases"])


def test_the_targets_on_record_are_those_of_today() -> None:
    cases = report.cases(report.documents()["packet"])
    noted = {n: (c["target"], c["stretch"]) for n, c in cases.items() if c["target"]}
    assert noted == record.TARGETS


def test_a_place_takes_a_figure_a_table_or_the_machine() -> None:
    result = record.Result("one", "ns", [30, 20, 40], net=1234, more={"in": {"a": 0.5}})
    found = {"packet": {**record.document("packet", 3, [result]), "flows": 16384}}
    text = "{{packet one net}} {{packet one in_a}} {{packet flows}} {{ packet }}"
    assert report.page(text, found) == "1,234 0.5 16,384 {{ packet }}"
    assert report.page("{{packet table}}", found).splitlines() == [
        "| case | minimum | median | net | target | stretch |",
        "|---|---|---|---|---|---|",
        "| `one` | 20 | 30 | 1,234 | - | - |",
    ]
    assert "3 rounds" in report.page("{{packet machine}}", found)
