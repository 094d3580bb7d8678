"""Other builds of the programs take the place of those that run, under traffic."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import live, packet
from bench.live import Ends, Flows
from lvsxdp import bytecode, compiler, records
from tests.e2e.pair import PROGRAM

pytestmark = pytest.mark.alone
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLAIN, PERSISTENT = live.VIPS
RATE = 100_000  # packets a second
ESTABLISHED, NEW = 4096, 1 << 20
LAG = 512  # as in live.c
CONFIG = f"""
capacity: {{connections: 1048576, persistence: 262144}}
services:
  - {{name: plain, protocol: tcp, address: {PLAIN}, port: 80, scheduler: rr,
     backends: [{{address: 10.0.0.11}}, {{address: 10.0.0.12}}]}}
  - {{name: kept, protocol: tcp, address: {PERSISTENT}, port: 80, scheduler: rr, persistence: 3600,
     backends: [{{address: 10.0.0.11}}, {{address: 10.0.0.12}}]}}
"""


class Balancer:
    """A balancer between a generator and a witness, and the program that manages it."""

    def __init__(self, outer: Ends, inner: live.Balancer, folder: Path) -> None:
        self.outer, self.inner, self.folder = outer, inner, folder
        self.file = folder / "lb.yaml"
        self.file.write_text(CONFIG)

    def command(self, *words: object, package: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """What a command says, of the lvsxdp in a folder."""
        argv = [PROGRAM.parent / "python", "-m", "lvsxdp.cli", "--netns", self.inner.namespace]
        return subprocess.run(
            [str(word) for word in (*argv, *words)],
            cwd=package,
            env={**os.environ, "PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def lvsxdp(self, *words: object, package: Path = ROOT) -> str:
        """The same of a command that succeeds."""
        done = self.command(*words, package=package)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def read(self, *words: object) -> Any:
        """The JSON of a read command."""
        return json.loads(self.command(*words, "--json").stdout)

    def program(self) -> int:
        """The id of the XDP program on lb0."""
        argv = ["ip", "-n", self.inner.namespace, "-j", "-d", "link", "show", "dev", "lb0"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return int(json.loads(shown)[0]["xdp"]["prog"]["id"])


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    with live.ends(tmp_path / "cache") as outer, contextlib.ExitStack() as stack:
        compiled = compiler.compile_source("witness.c", {}, cache=tmp_path / "cache", folder=HERE)
        loaded, tables = bytecode.load_alone(compiled, ("witness",))
        outer.programs["sink"], outer.counts = loaded["witness"], tables["counts"]
        inner = stack.enter_context(live.balancer(outer, 1))
        made = Balancer(outer, inner, tmp_path)
        made.lvsxdp("attach", "lb0", "lb1", "-c", made.file, "--set-sysctl", "--mode", "native")
        for address in live.VIPS:
            live.ip(inner.namespace, "addr", "add", f"{address}/32", "dev", "lo")
        yield made
        made.command("detach", "--all")


def other_build(folder: Path, change: tuple[str, str, str]) -> Path:
    """A package of lvsxdp whose C sources differ in one line."""
    package = folder / "other"
    for name in ("lvsxdp", "bpf"):
        shutil.copytree(ROOT / name, package / name)
    name, before, after = change
    source = package / "bpf" / name
    text = source.read_text()
    assert before in text
    source.write_text(text.replace(before, after))
    return package


def sums(outer: Ends) -> list[int]:
    """Frames that arrived, that came to another backend than their flow's, and any others."""
    rows = [outer.counts.look_up(records.number(place)) or b"" for place in range(3)]
    return [sum(int.from_bytes(p, "little") for p in records.per_cpu(r, 8)) for r in rows]


def established(virtual: str, flags: int, flows: int = ESTABLISHED) -> Flows:
    return Flows("20.0.0.0", flows, flags, virtual, clients=True, spread=False)


def new(virtual: str, flags: int, flows: int = NEW) -> Flows:
    return Flows("60.0.0.0", flows, flags, virtual, clients=True, spread=False)


def send(outer: Ends, balancer: live.Balancer, flows: Flows) -> int:
    """Each flow once."""
    outer.counter = 0
    outer.send(balancer, flows, flows.flows)
    return flows.flows


@contextlib.contextmanager
def traffic(balancer: Balancer) -> Iterator[list[int]]:
    """RATE packets a second meanwhile; how many were sent, at the end."""
    kinds = [
        flows
        for kind in (
            [established(virtual, packet.ACK) for virtual in live.VIPS],
            [new(virtual, packet.SYN) for virtual in live.VIPS],
            [new(virtual, packet.ACK) for virtual in live.VIPS],
        )
        for flows in kind
    ]
    fork, sent = multiprocessing.get_context("fork"), [0]
    process = fork.Process(
        target=balancer.outer.pace, args=(balancer.inner, kinds, RATE), daemon=True
    )
    process.start()
    try:
        yield sent
    finally:
        _, seconds = balancer.outer.paced()
        process.terminate()
        process.join(30)
        sent[0], _ = balancer.outer.paced()
    print(f"{sent[0]} packets in {seconds:.2f} s")
    assert sent[0] > 0.99 * RATE * seconds, "not the traffic that this test is about"


def test_no_packet_is_lost_and_no_client_moves_when_another_build_takes_over(
    balancer: Balancer, tmp_path: Path
) -> None:
    package = other_build(
        tmp_path, ("config.h", "NEXTHOP_LIFE ((u64)HZ)", "NEXTHOP_LIFE (2ULL * HZ)")
    )
    opening = 0
    for virtual in live.VIPS:
        opening += send(balancer.outer, balancer.inner, new(virtual, packet.SYN, LAG))
        for flags in (packet.SYN, packet.ACK):
            opening += send(balancer.outer, balancer.inner, established(virtual, flags))
    clients = {row["client"]: row["backend"] for row in balancer.read("persistence", "list")}
    assert len(clients) == ESTABLISHED + LAG
    programs, seconds = [balancer.program()], []
    with traffic(balancer) as sent:
        for build in (package, ROOT):
            time.sleep(0.5)
            begun = time.monotonic()
            said = balancer.lvsxdp("attach", "lb0", "lb1", package=build)
            seconds.append(time.monotonic() - begun)
            assert "exchanged the programs: every entry is kept" in said
            programs.append(balancer.program())
        time.sleep(0.5)
    assert len(set(programs)) == 3
    deadline = time.monotonic() + live.PATIENCE
    while sums(balancer.outer)[0] < opening + sent[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    print(f"the exchanges took {seconds} s")
    assert sums(balancer.outer) == [opening + sent[0], 0, 0]
    kept = {row["client"]: row["backend"] for row in balancer.read("persistence", "list")}
    assert {client: kept.get(client) for client in clients} == clients
    reasons = balancer.read("status")["reasons"]
    assert reasons.pop("forwarded") == opening + sent[0]
    # the kernel's own, of its neighbours
    assert set(reasons) <= {"no_service", "not_ip", "other_protocol", "other_host"}


def test_a_build_with_other_tables_says_what_would_be_lost_and_takes_over_by_force(
    balancer: Balancer, tmp_path: Path
) -> None:
    package = other_build(
        tmp_path, ("types.h", "\tu64 total;\n};", "\tu64 total;\n\tu64 extra;\n};")
    )
    flows = 64
    for flags in (packet.SYN, packet.ACK):
        send(balancer.outer, balancer.inner, established(PERSISTENT, flags, flows))
    before, saved = balancer.program(), balancer.lvsxdp("save")
    done = balancer.command("attach", "lb0", package=package)
    assert done.returncode == 4
    assert "loads: row 16 becomes 24" in done.stderr
    assert f"{flows} connections and {flows} persistence entries are lost" in done.stderr
    assert balancer.program() == before
    assert len(balancer.read("connection", "list")) == flows
    said = balancer.lvsxdp("attach", "lb0", "--force", package=package)
    assert "the entries were lost" in said
    assert balancer.program() != before
    # from here on by the lvsxdp that loaded it
    assert balancer.lvsxdp("save", package=package) == saved
    send(balancer.outer, balancer.inner, established(PERSISTENT, packet.SYN, flows))
    assert len(balancer.read("connection", "list")) == flows
    assert balancer.command("status", "--check", package=package).returncode == 0
