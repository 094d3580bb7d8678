"""The clients: each asks from inside a namespace and returns the name of the backend that answered.

`source` picks one of the namespace's addresses. No answer in time is a ClientError.
"""

import json
import subprocess
from dataclasses import dataclass

from lab.errors import ClientError
from lab.topology import HERE, PYTHON, Lab, Spawned

TIMEOUT = 5.0
# The process gets longer than its own time-out, so that it can still say what failed.
GRACE = 5.0


@dataclass(frozen=True)
class LoadResult:
    """What became of many requests: answers by backend, failures by text."""

    backends: dict[str, int]
    errors: dict[str, int]

    @property
    def ok(self) -> int:
        """The number of requests that were answered."""
        return sum(self.backends.values())

    @property
    def failed(self) -> int:
        """The number of requests that were not."""
        return sum(self.errors.values())


@dataclass(frozen=True)
class RunningLoad:
    """Requests that keep coming until they are stopped."""

    spawned: Spawned

    def stop(self) -> LoadResult:
        """Return the result, after the requests under way have ended."""
        self.spawned.stop(timeout=TIMEOUT + GRACE)
        return _parse(self.spawned.output())


def http(lab: Lab, ns: str, url: str, source: str | None = None, timeout: float = TIMEOUT) -> str:
    """Return the body of `url`: "b1" of http://HOST/, the client's address of /client."""
    return _curl(lab, ns, [url], source, timeout)


def https(lab: Lab, ns: str, url: str, source: str | None = None, timeout: float = TIMEOUT) -> str:
    """Return the body of `url`, whoever signed the server's certificate."""
    return _curl(lab, ns, ["--insecure", url], source, timeout)


def dns(lab: Lab, ns: str, server: str, source: str | None = None, timeout: float = TIMEOUT) -> str:
    """Return the backend that answers `whoami.lab` over UDP."""
    return _dig(lab, ns, [f"@{server}"], source, timeout)


def dns_tcp(
    lab: Lab, ns: str, server: str, source: str | None = None, timeout: float = TIMEOUT
) -> str:
    """Return the backend that answers `whoami.lab` over TCP."""
    return _dig(lab, ns, ["+tcp", f"@{server}"], source, timeout)


def ftp_passive(
    lab: Lab, ns: str, server: str, source: str | None = None, timeout: float = TIMEOUT
) -> str:
    """Return the backend whose file came over a data connection that the client opened.

    Over IPv4 the client connects to the very address that the server's PASV answer names.
    """
    passive = ["--disable-epsv", "--no-ftp-skip-pasv-ip"]
    return _curl(lab, ns, [*passive, _ftp_url(server)], source, timeout)


def ftp_active(
    lab: Lab, ns: str, server: str, source: str | None = None, timeout: float = TIMEOUT
) -> str:
    """Return the backend whose file came over a data connection from its port 20."""
    return _curl(lab, ns, ["--ftp-port", source or "-", _ftp_url(server)], source, timeout)


def ping(lab: Lab, ns: str, address: str, source: str | None = None) -> bool:
    """Return whether one echo request is answered within a second."""
    bound = ["-I", source] if source else []
    return lab.run(ns, ["ping", "-n", "-c1", "-W1", *bound, address]).returncode == 0


def load(
    lab: Lab, ns: str, url: str, requests: int, concurrency: int = 8, source: str | None = None
) -> LoadResult:
    """Return what became of `requests` requests, each on a connection of its own."""
    argv = _load_command(url, requests, concurrency, source)
    done = lab.run(ns, argv, timeout=GRACE + TIMEOUT * (1 + requests / concurrency))
    return _parse(done.stdout + done.stderr)


def start_load(
    lab: Lab, ns: str, url: str, concurrency: int = 8, source: str | None = None
) -> RunningLoad:
    """Return requests that run in the background until they are stopped."""
    return RunningLoad(lab.spawn(ns, _load_command(url, 0, concurrency, source)))


def _load_command(url: str, requests: int, concurrency: int, source: str | None) -> list[str]:
    script = str(HERE / "load_client.py")
    return [PYTHON, script, url, str(requests), str(concurrency), str(TIMEOUT), source or ""]


def _parse(text: str) -> LoadResult:
    try:
        return LoadResult(**json.loads(text))
    except ValueError as err:
        raise ClientError(f"the load client ended without a result: {text.strip()!r}") from err


def _curl(lab: Lab, ns: str, words: list[str], source: str | None, timeout: float) -> str:
    bound = ["--interface", source] if source else []
    limits = ["--max-time", str(timeout), "--noproxy", "*"]
    # Without -q, a .curlrc of whoever runs this would count.
    argv = ["curl", "-q", "--silent", "--show-error", "--fail", "--globoff", *limits, *bound]
    return _answer(ns, lab.run(ns, [*argv, *words], timeout=timeout + GRACE))


def _dig(lab: Lab, ns: str, words: list[str], source: str | None, timeout: float) -> str:
    bound = ["-b", source] if source else []
    limits = [f"+time={max(1, round(timeout))}", "+tries=1", "+short", "-r"]
    argv = ["dig", *limits, *bound, *words, "whoami.lab", "TXT"]
    return _answer(ns, lab.run(ns, argv, timeout=timeout + GRACE)).strip('"')


def _ftp_url(server: str) -> str:
    return f"ftp://[{server}]/whoami" if ":" in server else f"ftp://{server}/whoami"


def _answer(ns: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return what the client printed; ClientError if it failed or printed nothing."""
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip()
    said = (done.stderr or done.stdout).strip() or "no text"
    command = " ".join(done.args[4:])
    raise ClientError(f"no answer in {ns}, exit code {done.returncode}: {command}: {said}")
