"""The demo: eight promises, each shown by real clients, servers and the real command line."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab import clients, layout, record, servers
from lab.errors import LabError
from lab.topology import HERE, Lab

PREFIX = "lvxdemo"
SHOP = HERE.parent / "examples/shop.yaml"
VIP = layout.VIP4
FIRST, NEIGHBOUR = "198.51.100.10", "198.51.100.77"
STRICT_SECONDS = 2
PATIENCE = 60.0


@dataclass
class Demo:
    """The laboratory, the program, and what each promise came to."""

    lab: Lab
    program: Path
    lines: list[str] = field(default_factory=list)
    kept: int = 0

    def lvsxdp(self, *words: str) -> str:
        """Run one lvsxdp command for the balancer and return what it printed."""
        argv = [str(self.program), "--netns", self.lab.netns("lb"), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise LabError(f"lvsxdp {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def show(self, promise: str, look: Callable[[], tuple[bool, str]]) -> None:
        """Keep one line of the screen: whether the promise held, and the evidence."""
        try:
            held, evidence = look()
        except (LabError, subprocess.TimeoutExpired) as err:
            held, evidence = False, str(err).splitlines()[0]
        self.kept += held
        number = len(self.lines) + 1
        self.lines.append(f"{'ok    ' if held else 'FAILED'} {number}. {promise}: {evidence}")
        print(".", end="", flush=True)


def spread(demo: Demo) -> tuple[bool, str]:
    """Without persistence the requests of one client go round."""
    seen = [clients.http(demo.lab, "c1", f"http://{VIP}:8080/") for _ in range(6)]
    return len(set(seen)) == 3, " ".join(seen)


def one_client(demo: Demo) -> tuple[bool, str]:
    """Four protocols of one client under one mark meet one backend."""
    lab = demo.lab
    seen = {
        "HTTP": clients.http(lab, "c1", f"http://{VIP}/", FIRST),
        "HTTPS": clients.https(lab, "c1", f"https://{VIP}/", FIRST),
        "DNS": clients.dns(lab, "c1", VIP, FIRST),
        "FTP": clients.ftp_passive(lab, "c1", VIP, FIRST),
    }
    return len(set(seen.values())) == 1, ", ".join(f"{k} {v}" for k, v in seen.items())


def another_client(demo: Demo) -> tuple[bool, str]:
    """A client of another network has a backend of its own."""
    first = clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST)
    second = clients.http(demo.lab, "c2", f"http://{VIP}/")
    return first != second, f"{FIRST} on {first}, 203.0.113.10 on {second}"


def neighbour(demo: Demo) -> tuple[bool, str]:
    """Under the netmask /24 a neighbour shares the entry."""
    first = clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST)
    second = clients.http(demo.lab, "c1", f"http://{VIP}/", NEIGHBOUR)
    entries = json.loads(demo.lvsxdp("persistence", "list", "--json"))
    mine = [entry for entry in entries if entry["client"] == "198.51.100.0/24"]
    return first == second and len(mine) == 1, f"both on {first}, {len(mine)} entry for the /24"


def strict(demo: Demo) -> tuple[bool, str]:
    """With expiry: strict the choice is made anew when the time is up."""
    text = SHOP.read_text().replace("timeout: 600", f"timeout: {STRICT_SECONDS}, expiry: strict")
    variant = demo.lab.directory / "strict.yaml"
    variant.write_text(text)
    demo.lvsxdp("apply", str(variant))
    demo.lvsxdp("persistence", "flush", "shop")
    before = [clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST) for _ in range(2)]
    time.sleep(STRICT_SECONDS + 0.3)
    after = clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST)
    demo.lvsxdp("apply", str(SHOP))
    demo.lvsxdp("persistence", "flush", "shop")
    said = f"{' '.join(before)}, {STRICT_SECONDS} s later {after}"
    return len(set(before)) == 1 and after != before[0], said


def killed(demo: Demo) -> tuple[bool, str]:
    """With no lvsxdp process left, new connections and persistence go on."""
    daemon = demo.lab.spawn("lb", [str(demo.program), "run"])
    if not record.wait_until(lambda: "started" in daemon.output(), PATIENCE):
        raise LabError(f"lvsxdp run did not start: {daemon.output().strip()}")
    before = clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST)
    daemon.stop(signal.SIGKILL)
    alive = _processes(demo.program)
    seen = [clients.http(demo.lab, "c1", f"http://{VIP}/", FIRST) for _ in range(3)]
    spread_out = {clients.http(demo.lab, "c1", f"http://{VIP}:8080/") for _ in range(3)}
    held = not alive and set(seen) == {before} and len(spread_out) == 3
    return held, f"{len(alive)} processes, persistent client still on {' '.join(seen)}"


def _processes(program: Path) -> list[int]:
    """Return the processes that run the program."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(program) in words:
            found.append(int(path.parent.name))
    return found


def drained(demo: Demo) -> tuple[bool, str]:
    """A backend leaves under load and no request fails."""
    running = clients.start_load(demo.lab, "c2", f"http://{VIP}:8080/", 8)
    try:
        time.sleep(1)
        demo.lvsxdp("backend", "drain", "plain", "10.0.0.13")
        if not record.wait_until(lambda: not _active(demo, "10.0.0.13"), PATIENCE):
            raise LabError("10.0.0.13 keeps open connections after its drain")
        demo.lvsxdp("backend", "delete", "plain", "10.0.0.13")
        time.sleep(1)
    finally:
        result = running.stop()
    left = len(json.loads(demo.lvsxdp("backend", "list", "plain", "--json")))
    held = not result.failed and result.ok > 100 and left == 2
    return held, f"{result.failed} of {result.ok + result.failed} requests failed"


def _active(demo: Demo, address: str) -> int:
    rows = json.loads(demo.lvsxdp("backend", "list", "plain", "--json"))
    return int(next(row["active"] for row in rows if row["address"] == address))


def _counts(demo: Demo) -> tuple[int, int]:
    """Return how many packets of lb0 the kernel received and lvsxdp counted under a reason."""
    by_reason = sum(json.loads(demo.lvsxdp("status", "--json"))["reasons"].values())
    return demo.lab.counters("lb", "lb0").rx_packets, by_reason


def counted(demo: Demo, before: tuple[int, int]) -> tuple[bool, str]:
    """Every packet that the interface received was counted once, under a reason."""
    status = json.loads(demo.lvsxdp("status", "--json"))
    (interface,) = status["interfaces"]
    shown = demo.lab.run("lb", ["ip", "link", "show", "dev", "lb0"], check=True).stdout
    found = re.search(r"prog/xdp id (\d+)", shown)
    if not found:
        return False, "the kernel shows no XDP program on lb0"
    received = by_reason = 0
    for _ in range(10):
        after = _counts(demo)
        received, by_reason = after[0] - before[0], after[1] - before[1]
        if received == by_reason:
            break
        time.sleep(0.3)
    held = int(found[1]) == interface["program_id"] and received == by_reason
    forwarded = status["reasons"]["forwarded"]
    return held, (
        f"program {found[1]}, {interface['mode']} mode, {by_reason} packets counted "
        f"({forwarded} forwarded), kernel received {received}"
    )


def run(demo: Demo) -> None:
    """Attach, then look at each promise in turn."""
    servers.start(demo.lab)
    demo.lvsxdp("attach", "lb0", "-c", str(SHOP))
    before = _counts(demo)
    demo.show("without persistence a client's requests go round", lambda: spread(demo))
    demo.show("mark and persistence: four protocols, one backend", lambda: one_client(demo))
    demo.show("a second client lands elsewhere", lambda: another_client(demo))
    demo.show("a neighbour under the /24 shares the entry", lambda: neighbour(demo))
    demo.show("time up (expiry: strict), the choice is made anew", lambda: strict(demo))
    demo.show("every lvsxdp process killed, traffic goes on", lambda: killed(demo))
    demo.show("a backend drained, then deleted, under load", lambda: drained(demo))
    demo.show("the work is done in XDP", lambda: counted(demo, before))


def screen(demo: Demo) -> str:
    """Return the one screen that the demo ends with."""
    return "\n".join(["", *demo.lines, f"{demo.kept} of {len(demo.lines)}"])


def commands(demo: Demo) -> str:
    """Return three commands to try in the topology that was kept."""
    balancer, client = demo.lab.netns("lb"), demo.lab.netns("c1")
    return "\n".join(
        [
            "the topology stands; try:",
            f"  ip netns exec {client} curl http://{VIP}/",
            f"  {demo.program} --netns {balancer} persistence list",
            f"  {demo.program} --netns {balancer} backend drain shop 10.0.0.11",
            "and to take it down: scripts/demo --down",
        ]
    )


def down(program: Path) -> None:
    """Detach and take down what --keep left, or an interrupted run."""
    name = record.netns(PREFIX, "lb")
    if Path("/run/netns", name).exists():
        subprocess.run([str(program), "--netns", name, "detach", "--all"], capture_output=True)
    with record.locked(PREFIX):
        record.take_down(PREFIX)
    remove_stale(program)


def remove_stale(program: Path) -> None:
    """Remove the pins of an attach that was killed, now that its namespace is gone."""
    subprocess.run([str(program), "detach", "--stale"], capture_output=True, timeout=300)


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the topology up")
    parser.add_argument("--down", action="store_true", help="take down what --keep left")
    args = parser.parse_args()
    program = Path(sys.executable).parent / "lvsxdp"
    down(program)
    if args.down:
        return 0
    keep = False
    try:
        with Lab(PREFIX, forwarding="lo") as lab:
            demo = Demo(lab, program)
            try:
                run(demo)
                print(screen(demo))
                if args.keep:
                    keep = True
                    lab.leave_standing({"servers": True})
                    print(commands(demo))
            finally:
                if not keep:
                    detach(demo)
    except LabError as err:
        print(f"\ndemo: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        remove_stale(program)
        print("\ndemo: interrupted; nothing is left", file=sys.stderr)
        return 130
    return 0 if demo.kept == len(demo.lines) == 8 else 1


def detach(demo: Demo) -> None:
    """Remove the balancer's pins and files, so that nothing of it outlives the namespace."""
    argv = [str(demo.program), "--netns", demo.lab.netns("lb"), "detach", "--all"]
    subprocess.run(argv, capture_output=True, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
