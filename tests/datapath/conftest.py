"""The data plane, compiled and loaded once for all of its tests."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lvsxdp import attaching, config, controller, loading, network
from lvsxdp.controller import Balancer
from lvsxdp.loading import Build
from lvsxdp.network import Network
from tests.datapath.harness import (
    NAMESPACE,
    Datapath,
    build_namespace,
    inside,
    remove_namespace,
)

WHOLE = """
capacity: {connections: 4096, persistence: 4096, marks: 16384}
features: all
"""
# A draw with which the bare sums of clients in a row would meet few buckets (bpf/hash.h).
DRAW = random.Random(16)
KEYS = tuple(DRAW.getrandbits(64) for _ in range(loading.HASH_KEYS))


@contextlib.contextmanager
def running(
    name: str, text: str, cache: Path, defines: Mapping[str, object] | None = None
) -> Iterator[Datapath]:
    """The programs compiled, loaded and attached in a namespace of this name, where it goes on."""
    network.leave_private_mounts()
    build_namespace(name)
    with inside(name):
        where = controller.here()
        try:
            with Network() as net:
                for sysctl in controller.SYSCTLS:
                    network.set_sysctl(sysctl, "1")
                build = Build({"TEST_CLOCK": 1, **(defines or {})}, cache=cache, keys=KEYS)
                loaded = config.load(text)[0]
                attaching.attach(where, net, ("lb0", "lb1"), loaded, "native", build=build)
                with Balancer.open(where) as balancer:
                    yield Datapath(balancer, net)
                attaching.detach_all(where, net)
        finally:
            loading.remove_pins(where.pins)
            shutil.rmtree(where.files, ignore_errors=True)
            remove_namespace(name)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datapath]:
    """The programs compiled, loaded and attached once."""
    with running(NAMESPACE, WHOLE, tmp_path_factory.mktemp("cache")) as made:
        yield made


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """This process on one CPU, as what each CPU remembers is its own; another than its sibling's.

    pytest-xdist numbers the processes that share the tests: gw0, gw1, ...
    """
    before = os.sched_getaffinity(0)
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before, reverse=True)[number % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def datapath(loaded: Datapath) -> Iterator[Datapath]:
    """The programs with nothing configured, run on one CPU."""
    with on_one_cpu(), inside(NAMESPACE):
        loaded.clear()
        yield loaded
        loaded.clear()
