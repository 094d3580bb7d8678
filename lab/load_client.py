"""Sends HTTP requests, each on a fresh connection, and prints what came of them as JSON.

`load_client.py URL REQUESTS CONCURRENCY TIMEOUT [SOURCE]`. 0 requests: until SIGTERM. A script of
its own, since it runs inside a client's namespace.
"""

import collections
import http.client
import json
import signal
import ssl
import sys
import threading
import urllib.parse
from types import FrameType


class Tally:
    """Counts answers by backend and failures by text; hands out turns to the threads."""

    def __init__(self, requests: int) -> None:
        self.left = requests if requests else float("inf")
        self.backends: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()

    def has_turn(self) -> bool:
        """Return whether one more request is to be sent, and count it as sent."""
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Hand out no more turns; requests under way run to their end."""
        # Without the lock: the handler may interrupt the thread that holds it.
        self.left = 0

    def add(self, kind: str, text: str) -> None:
        """Count one result under `backends` or `errors`."""
        with self.lock:
            counter: collections.Counter[str] = getattr(self, kind)
            counter[text] += 1

    def shown(self) -> str:
        """Return the counts as JSON."""
        return json.dumps({"backends": self.backends, "errors": self.errors})


def ask(url: urllib.parse.SplitResult, timeout: float, source: str | None) -> str:
    """Return the body of one answer; OSError or HTTPException if there is no good one."""
    address = (source, 0) if source else None
    # Without a port, http.client takes the end of an IPv6 address for one.
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    host, path = url.hostname or "", url.path or "/"
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        # The lab's certificate is signed by nobody.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            host, port, timeout=timeout, source_address=address, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout, source_address=address)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode().strip()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise http.client.HTTPException(f"status {answer.status}")
    return body


def work(tally: Tally, url: str, timeout: float, source: str | None) -> None:
    """Send requests one after another for as long as there are turns."""
    parsed = urllib.parse.urlsplit(url)
    while tally.has_turn():
        try:
            tally.add("backends", ask(parsed, timeout, source))
        except (OSError, http.client.HTTPException) as err:
            tally.add("errors", f"{type(err).__name__}: {err}")


def main(url: str, requests: str, concurrency: str, timeout: str, source: str = "") -> None:
    """Send all requests from several threads, then print the counts."""
    tally = Tally(int(requests))
    signal.signal(signal.SIGTERM, tally.stop)
    arguments = (tally, url, float(timeout), source or None)
    threads = [threading.Thread(target=work, args=arguments) for _ in range(int(concurrency))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(tally.shown())


if __name__ == "__main__":
    main(*sys.argv[1:])
