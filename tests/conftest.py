"""In CI (CI is set), a test that did not run is a failure."""

from __future__ import annotations

import os

import pytest


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
