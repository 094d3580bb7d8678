"""The systemd units of examples/, and what the daemon tells systemd."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import PROGRAM, Pair, config, pair, run

EXAMPLES = Path(__file__).parents[2] / "examples"
UNITS = ("lvsxdp.service", "lvsxdpd.service")
INSTALLED = "/usr/local/bin/lvsxdp"
SHOP = """
services:
  - {name: shop, protocol: udp, address: 192.0.2.1, port: 7777,
     backends: [{address: 192.0.2.2}]}
"""
MORE = SHOP + "  - {name: more, protocol: udp, address: 192.0.2.1, port: 7778}\n"


@pytest.fixture
def lb() -> Iterator[Pair]:
    with pair() as made:
        yield made


def test_systemd_finds_nothing_wrong_in_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        text = (EXAMPLES / name).read_text()
        started = [line for line in text.splitlines() if re.match(r"Exec\w+=.*lvsxdp ", line)]
        assert started
        assert all(f"={INSTALLED} " in line for line in started)
        (tmp_path / name).write_text(text.replace(INSTALLED, str(PROGRAM)))
    done = run("systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in UNITS))
    assert done.stdout + done.stderr == ""


def test_what_is_wrong_in_a_unit_would_be_found(tmp_path: Path) -> None:
    broken = (EXAMPLES / UNITS[1]).read_text().replace("Type=notify", "Type=notification")
    (tmp_path / UNITS[1]).write_text(broken)
    done = run("systemd-analyze", "verify", "--man=no", tmp_path / UNITS[1], check=False)
    assert "Failed to parse service type" in done.stderr


@contextlib.contextmanager
def daemon(lb: Pair, file: Path, told: Path) -> Iterator[subprocess.Popen[str]]:
    """The daemon as systemd starts it, with a socket at `told`."""
    argv = [str(PROGRAM), "--netns", lb.ns, "run", "--interval", "0.2", "-c", str(file)]
    environment = {**os.environ, "NOTIFY_SOCKET": str(told)}
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_daemon_tells_systemd_how_it_is_and_reloads_its_file(lb: Pair, tmp_path: Path) -> None:
    file = config(SHOP, tmp_path)
    lb.lvsxdp("attach", "p0", "-c", file)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        with daemon(lb, file, tmp_path / "notify") as process:
            assert [systemd.recv(64) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
            file.write_text(MORE)
            process.send_signal(signal.SIGHUP)
            wait_for(
                lambda: [row["name"] for row in lb.read("service", "list")] == ["shop", "more"]
            )
            file.write_text("services: 7")
            process.send_signal(signal.SIGHUP)
            said = list(lines_until(process, "event=not_reloaded"))
            process.send_signal(signal.SIGTERM)
            said += process.communicate(timeout=20)[1].splitlines()
            assert process.returncode == 0
        last = b""
        systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                last = systemd.recv(64)
    assert last == b"STOPPING=1"
    events = [line.split()[0] for line in said if line.startswith("event=")]
    assert events == ["event=started", "event=reloaded", "event=not_reloaded", "event=stopped"]
    assert [row["name"] for row in lb.read("service", "list")] == ["shop", "more"]


def lines_until(process: subprocess.Popen[str], start: str) -> Iterator[str]:
    """What the process says up to the first line that starts so."""
    assert process.stderr
    for line in process.stderr:
        yield line.rstrip("\n")
        if line.startswith(start):
            return
    raise AssertionError(f"it ended without {start}")
