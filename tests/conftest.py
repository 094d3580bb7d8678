"""All tests: one that did not run is a failure in CI, and some run beside no others."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__)
# How long an example takes says more of what else the machine does than of us.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that is marked `alone` while the processes that share the tests wait."""
    with _turn(fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
        return (yield)


@contextlib.contextmanager
def _turn(kind: int) -> Iterator[None]:
    """A process's turn; none begins while another waits to be alone.  Any two files will do."""
    with HERE.open() as turn:
        with HERE.with_name("marked.py").open() as begin:
            fcntl.flock(begin, fcntl.LOCK_EX)
            fcntl.flock(turn, kind)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session with skipped or xfailed tests fails in CI."""
    if _not_run(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say why such a session failed."""
    count = _not_run(config)
    if count:
        terminalreporter.write_line(
            f"CI: {count} skipped or xfailed: a test that did not run is a failure here", red=True
        )


def _not_run(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI", "false") in ("", "0", "false") or reporter is None:
        return 0
    return sum(len(reporter.getreports(outcome)) for outcome in ("skipped", "xfailed"))
