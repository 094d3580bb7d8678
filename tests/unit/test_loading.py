"""A process beside the loader ends with it, whenever the loader ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from lvsxdp import loading

PATIENCE = 10.0


def survived(meanwhile: Callable[[int], None]) -> bytes:
    """What a child of a process that is gone writes after it has done that."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        if os.fork() == 0:
            try:
                meanwhile(parent)
                os.write(writing, b"alive")
            finally:
                os._exit(0)
        # the child first asks to end with this process
        time.sleep(0.2)
        os._exit(0)
    os.close(writing)
    os.waitpid(parent, 0)
    with os.fdopen(reading, "rb") as said:
        return said.read()


def wait_for_the_end_of(parent: int) -> None:
    limit = time.monotonic() + PATIENCE
    while os.getppid() == parent and time.monotonic() < limit:
        time.sleep(0.01)


def ask_then_wait(parent: int) -> None:
    loading.end_with_parent(parent)
    wait_for_the_end_of(parent)


def wait_then_ask(parent: int) -> None:
    wait_for_the_end_of(parent)
    loading.end_with_parent(parent)


def test_a_process_that_asks_for_nothing_survives_its_parent() -> None:
    assert survived(wait_for_the_end_of) == b"alive"


@pytest.mark.parametrize("meanwhile", [ask_then_wait, wait_then_ask])
def test_a_process_ends_with_its_parent_though_that_be_gone_when_it_asks(
    meanwhile: Callable[[int], None],
) -> None:
    assert survived(meanwhile) == b""
