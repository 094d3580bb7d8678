"""Command lines that are wrong by themselves: refused before anything is opened."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from lvsxdp import cli

SECONDS = "is not a number of seconds (0 to 86400)"
INTERVAL = "is not an interval in seconds (0.1 to 86400)"
CONFIRM = "is not a number of whole seconds (1 to 86400)"
RULE = "mark add 1 --address 192.0.2.1"
SERVICE = "service add mark:1"
WRONG = {
    "--wait nan save": f"Invalid value for '--wait': \"nan\" {SECONDS}",
    "--wait -1 save": f"Invalid value for '--wait': \"-1\" {SECONDS}",
    "--wait 86401 save": f"Invalid value for '--wait': \"86401\" {SECONDS}",
    "--netns= save": "Invalid value for --netns: the name is empty; without --netns it is this one",
    "attach p0 p1 p0": "interface p0 is named twice; leave one out",
    "attach p0 --confirm 0": f"Invalid value for '--confirm': \"0\" {CONFIRM}",
    "attach p0 --confirm soon": f"Invalid value for '--confirm': \"soon\" {CONFIRM}",
    "attach p0 --mode fast": "'fast' is not one of 'auto', 'native', 'generic', 'tc'.",
    "detach": "name interfaces, or use --all or --stale: one of the three",
    "detach p0 --all": "name interfaces, or use --all or --stale: one of the three",
    "detach --all --stale": "name interfaces, or use --all or --stale: one of the three",
    "detach p0 p0": "interface p0 is named twice; leave one out",
    "run --interval 0": f"Invalid value for '--interval': \"0\" {INTERVAL}",
    "run --interval nan": f"Invalid value for '--interval': \"nan\" {SECONDS}",
    "mark add 1": "a rule needs --address; --address any stands for every one",
    "mark add x --address any": "Invalid value for 'MARK': \"x\" is not a mark (0 to 4294967295)",
    f"{RULE} --address any": "--address any stands for every one; leave out the others",
    f"{RULE} --address 192.0.2.1/32": "'--address': \"192.0.2.1/32\" is given twice; leave one out",
    f"{RULE} --port any --port 80": "--port any stands for every one; leave out the others",
    f"{RULE} --port 80 --port 80": "'--port': \"80\" is given twice; leave one out",
    f"{RULE} --port 21-20": "Invalid value for '--port': \"21-20\" runs backwards; write 20-21",
    f"{RULE} --vlan 4095": "Invalid value for '--vlan': \"4095\" is not a VLAN id (1 to 4094)",
    f"{RULE} --source-mac 02:00": "\"02:00\" is not a MAC address (02:00:00:00:00:01)",
    f"{RULE} --protocol icmp": "'--protocol': \"icmp\" is not a protocol (tcp, udp, sctp)",
    f"{SERVICE} --scheduler wr": "'--scheduler': \"wr\" is not a scheduler (rr, wrr, lc, wlc, ",
    f"{SERVICE} --flag sh-port --flag sh-port": "'--flag': \"sh-port\" is given twice; leave one",
    f"{SERVICE} --persistence 0": "\"0\" is not a timeout in whole seconds (1 to 2678400)",
    f"{SERVICE} --persistence 5 --netmask 33": "service mark:1: netmask: \"33\" is not an IPv4"
    " netmask (255.255.255.0, or a prefix length of 0 to 32)",
    f"{SERVICE} --netmask 24": "service mark:1 has none: give the seconds of persistence, too",
    "service edit shop": "name what to change: --scheduler, --persistence, ...",
    "backend edit shop 10.0.0.1": "name what to change: --weight, --upper-threshold, --lo",
    "backend add shop 10.0.0.1 --weight -1": "\"-1\" is not a weight (0 to 2147483647)",
    "backend add shop 10.0.0.1 -x 2147483648": "'--upper-threshold': \"2147483648\" is not a number"
    " of connections (0 to 2147483647)",
    "backend add shop web1": '"web1" is not a backend (10.0.0.11, 10.0.0.11:80, 2001:db8::11,',
    "backend add shop 10.0.0.1:65536": '"10.0.0.1:65536": "65536" is not a port (1 to 65535)',
    "connection delete": "name what to delete: --service, --client, --backend; all: flush",
    "connection list --client 10.0.0.1/8": '"10.0.0.1/8" has bits beyond its prefix; write 10.0.',
    "persistence list --client 10.0.0": '"10.0.0" is not an address or prefix (192.0.2.10, 192.',
    "settings set": "Missing argument 'NAME=VALUE...'",
    "settings set sloppy_tcp": '"sloppy_tcp" is no NAME=VALUE (secure_tcp=3)',
    "settings set slopy_tcp=1": '"slopy_tcp" is no setting; did you mean sloppy_tcp or',
    "settings set sloppy_tcp=2": 'sloppy_tcp: "2" is not a switch (true, false, 1, 0)',
    "settings set sloppy_tcp=1 sloppy_tcp=0": "sloppy_tcp is given twice; leave one out",
    "settings set secure_tcp=1": 'secure_tcp: "1" is one of the modes that IPVS switches by the',
    "settings set secure_tcp=4": 'secure_tcp: "4" is not a value of secure_tcp (0: off, 3: on)',
    "settings set timeout_udp=2678401": 'timeout_udp: "2678401" is not a value of timeout_udp (1',
    "settings set timeout_syn_recv=5": "timeout_syn_recv cannot be set, nor can it in IPVS",
    "check /nope.yaml": "/nope.yaml: No such file or directory; name a file, or - for standard",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_told_with_its_place_its_value_and_what_would_be_right(
    line: str,
) -> None:
    done = CliRunner().invoke(cli.main, line.split())
    assert (done.exit_code, WRONG[line] in done.output) == (2, True), done.output
