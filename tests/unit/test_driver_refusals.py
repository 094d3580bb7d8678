"""What is made of a driver's refusal: the value now, and the command that mends it."""

from __future__ import annotations

import pytest

from lvsxdp import driver_refusals
from lvsxdp.driver_refusals import Channels, Settings
from lvsxdp.network import Link, may_be_reset

FAILED = "attaching XDP to eth0 in native mode failed: "
COMBINED = Channels(max_combined=8, combined=8)
VETH = Channels(max_rx=4, max_tx=4, rx=1, tx=4)
FULL = Channels(max_rx=1, max_tx=4, rx=1, tx=4)
MTU = "its MTU is 9000 now: ip link set dev eth0 mtu"
LRO = "lro is on now: ethtool -K eth0 lro off"
HALVED = (
    "it has 8 combined channels now, and XDP may need a queue more for each: "
    "ethtool -L eth0 combined 4"
)
HOST = (
    "rx-gro-hw is on and fixed here; turn it off at the host of this machine "
    "(QEMU: guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off)"
)


@pytest.mark.parametrize(
    ("refusal", "found", "hints"),
    [
        # vmxnet3, ena, sfc, veth, ixgbe before 5.18 and others: MTU
        ("Operation not supported: vmxnet3: MTU 9000 too large for XDP", {}, [f"{MTU} 1500"]),
        (
            "Invalid argument: Failed to set xdp program, the current MTU is bigger than the "
            "maximum allowed MTU. Check the dmesg for more info",
            {},
            [f"{MTU} 1500"],
        ),
        (
            "Invalid argument: Unable to configure XDP with MTU of 9000 (max: 3498)",
            {},
            [f"{MTU} 3498"],
        ),
        ("Numerical result out of range", {}, [f"{MTU} 1500"]),
        (
            "Numerical result out of range: Peer MTU is too large to attach XDP",
            {},
            ["its own MTU is 9000 now; at its other end: ip link set dev PEER mtu 1500"],
        ),
        # virtio_net, mlx5: LRO
        (
            "Operation not supported: Can't set XDP while host is implementing GRO_HW/CSUM, "
            "disable GRO_HW/CSUM first",
            {"merging": ("rx-gro-hw",), "fixed": ("rx-gro-hw",)},
            [HOST],
        ),
        (
            "Invalid argument: mlx5_core: can't set XDP while HW-LRO is on, disable HW-LRO first",
            {"merging": ("lro",)},
            [LRO],
        ),
        # ena, veth: queues
        (
            "Invalid argument: Failed to set xdp program, there is no enough space for allocating "
            "XDP queues, Check the dmesg for more info",
            {"channels": COMBINED},
            [HALVED],
        ),
        (
            "No space left on device: XDP expects number of rx queues not less than peer tx queues",
            {"channels": VETH},
            ["it has 1 rx queues now: ethtool -L eth0 rx 4"],
        ),
        (
            "No space left on device: XDP expects number of rx queues not less than peer tx queues",
            {"channels": FULL},
            [
                "it has 1 rx queues now, and can have no more; "
                "at its other end: ethtool -L PEER tx 1"
            ],
        ),
        (
            "Invalid argument: not enough rings",
            {"channels": Channels(max_rx=8, max_tx=6, rx=8, tx=6)},
            [
                "it has 8 rx and 6 tx channels now, and XDP may need a queue more for each: "
                "ethtool -L eth0 rx 4 tx 3"
            ],
        ),
        # igb, older bnxt: no reason at all, so all that is known to be one somewhere
        (
            "Invalid argument",
            {"channels": COMBINED, "merging": ("lro",)},
            [f"{MTU} 1500", LRO, HALVED],
        ),
        ("Invalid argument", {"mtu": 1500, "channels": Channels(max_combined=8, combined=4)}, []),
        (
            "Operation not supported: Underlying driver does not support XDP in native mode",
            {"channels": COMBINED, "merging": ("lro",)},
            [],
        ),
    ],
)
def test_a_refusal_keeps_the_kernels_words_and_names_value_and_command(
    refusal: str, found: dict, hints: list[str]
) -> None:
    settings = Settings(**{"mtu": 9000, **found})
    said = driver_refusals.explain("eth0", FAILED + refusal, settings)
    assert said == "; ".join([FAILED + refusal, *hints])


@pytest.mark.parametrize(
    ("name", "kind", "reset"),
    [("eth0", "", True), ("bond0", "bond", True), ("p0", "veth", False), ("lo", "", False)],
)
def test_hardware_may_be_reset_by_native_mode(name: str, kind: str, reset: bool) -> None:
    link = Link(name, 3, "02:00:00:00:00:01", kind, 1500, 0, 0, "")
    assert may_be_reset(link) == reset
