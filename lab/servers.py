"""The backends' servers: nginx, vsftpd and dnsmasq, each of which names its backend."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import layout, record
from lab.errors import LabError
from lab.topology import Lab, Spawned

BIG_BODY = bytes(range(256)) * 4096
# An emulated machine takes its time.
START_UP = 60.0
LISTENING = "0A"
UNCONNECTED = "07"

NGINX = """
daemon off;
user nobody nogroup;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format lab '$remote_addr $server_addr:$server_port "$request" $status';
    access_log {home}/access.log lab;
    client_body_temp_path {home}/tmp-body;
    proxy_temp_path {home}/tmp-proxy;
    fastcgi_temp_path {home}/tmp-fastcgi;
    uwsgi_temp_path {home}/tmp-uwsgi;
    scgi_temp_path {home}/tmp-scgi;
    default_type text/plain;
    client_max_body_size 0;
    server {{
        listen 80 backlog=4096;
        listen [::]:80 backlog=4096;
        listen 8080;
        listen [::]:8080;
        listen 443 ssl;
        listen [::]:443 ssl;
        ssl_certificate {lab}/certificate.pem;
        ssl_certificate_key {lab}/key.pem;
        add_header X-Backend {name} always;
        root {home}/www;
        location = / {{ return 200 "{name}\\n"; }}
        location = /client {{ return 200 "$remote_addr\\n"; }}
    }}
}}
"""

# One listener for both families; an IPv4 client's PASV answer is then IPv4 all the same.
# The user's home must exist, or vsftpd refuses the login in spite of anon_root.
VSFTPD = """
listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
no_anon_password=YES
local_enable=NO
ftp_username=daemon
anon_root={home}/ftp
secure_chroot_dir={home}/empty
connect_from_port_20=YES
pasv_min_port=10000
pasv_max_port=10100
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
xferlog_enable=YES
vsftpd_log_file={home}/vsftpd.log
"""

DNSMASQ = """
keep-in-foreground
user=nobody
group=nogroup
pid-file={home}/dnsmasq.pid
port=53
no-resolv
no-hosts
local=/lab/
txt-record=whoami.lab,{name}
"""


@dataclass(frozen=True)
class Servers:
    """The running servers of one backend."""

    nginx: Spawned
    vsftpd: Spawned
    dnsmasq: Spawned


def start(lab: Lab, backends: Iterable[str] = layout.BACKENDS) -> dict[str, Servers]:
    """Return every backend's servers, all of them listening."""
    _make_certificate(lab)
    started = {
        name: Servers(_spawn_nginx(lab, name), _spawn_vsftpd(lab, name), _spawn_dnsmasq(lab, name))
        for name in backends
    }
    for servers in started.values():
        _wait_for(servers.nginx, {("tcp", 80), ("tcp", 8080), ("tcp", 443)})
        _wait_for(servers.vsftpd, {("tcp", 21)})
        _wait_for(servers.dnsmasq, {("tcp", 53), ("udp", 53)})
    return started


def start_nginx(lab: Lab, backend: str) -> Spawned:
    """Return a backend's web server, listening again after it was stopped."""
    nginx = _spawn_nginx(lab, backend)
    _wait_for(nginx, {("tcp", 80), ("tcp", 8080), ("tcp", 443)})
    return nginx


def start_vsftpd(lab: Lab, backend: str) -> Spawned:
    """Return an FTP server of a namespace, listening."""
    vsftpd = _spawn_vsftpd(lab, backend)
    _wait_for(vsftpd, {("tcp", 21)})
    return vsftpd


def http_log(lab: Lab, backend: str) -> list[str]:
    """Return what a web server was asked: 'client server:port "request" status', a line each."""
    return (_home(lab, backend) / "access.log").read_text().splitlines()


def _home(lab: Lab, backend: str) -> Path:
    home = lab.directory / f"servers-{backend}"
    home.mkdir(exist_ok=True)
    return home


def _configure(lab: Lab, backend: str, name: str, template: str) -> Path:
    home = _home(lab, backend)
    path = home / name
    path.write_text(template.lstrip().format(home=home, lab=lab.directory, name=backend))
    return path


def _spawn_nginx(lab: Lab, backend: str) -> Spawned:
    config = _configure(lab, backend, "nginx.conf", NGINX)
    home = config.parent
    (home / "www").mkdir(exist_ok=True)
    (home / "www/big").write_bytes(BIG_BODY)
    argv = ["nginx", "-p", str(home), "-e", str(home / "error.log"), "-c", str(config)]
    return lab.spawn(backend, argv)


def _spawn_vsftpd(lab: Lab, backend: str) -> Spawned:
    config = _configure(lab, backend, "vsftpd.conf", VSFTPD)
    home = config.parent
    # vsftpd refuses a root that its user may write to: both stay root's.
    for name in ("ftp", "empty"):
        (home / name).mkdir(exist_ok=True)
    (home / "ftp/whoami").write_text(f"{backend}\n")
    (home / "ftp/big").write_bytes(BIG_BODY)
    return lab.spawn(backend, ["vsftpd", str(config)])


def _spawn_dnsmasq(lab: Lab, backend: str) -> Spawned:
    config = _configure(lab, backend, "dnsmasq.conf", DNSMASQ)
    argv = ["dnsmasq", f"--conf-file={config}", "--log-facility=-"]
    return lab.spawn(backend, argv)


def _make_certificate(lab: Lab) -> None:
    """Make the one self-signed certificate that all backends of the lab show."""
    certificate = lab.directory / "certificate.pem"
    if certificate.exists():
        return
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    files = ["-keyout", str(lab.directory / "key.pem"), "-out", str(certificate)]
    name = ["-subj", "/CN=service.lab", "-days", "30"]
    lab.run("b1", [*request.split(), *files, *name], check=True)


def _wait_for(server: Spawned, ports: set[tuple[str, int]]) -> None:
    """Return once the server listens on all the ports; LabError with its words if it does not."""
    if not record.wait_until(functools.partial(_has_settled, server, ports), START_UP):
        raise LabError(f"{server.popen.args!r} does not listen: {server.output().strip()}")
    if server.popen.poll() is not None:
        raise LabError(f"{server.popen.args!r} has ended: {server.output().strip()}")


def _has_settled(server: Spawned, ports: set[tuple[str, int]]) -> bool:
    return server.popen.poll() is not None or ports <= _listening(server.popen.pid)


def _listening(pid: int) -> set[tuple[str, int]]:
    """Return (protocol, port) of all that listens in the namespace where the process is."""
    found = set()
    tables = (("tcp", LISTENING), ("tcp6", LISTENING), ("udp", UNCONNECTED), ("udp6", UNCONNECTED))
    for table, state in tables:
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                found.add((table[:3], int(fields[1].rpartition(":")[2], 16)))
    return found
