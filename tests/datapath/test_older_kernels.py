"""What Linux 6.1's verifier refuses and later ones do not: loops without a jump back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lvsxdp import compiler, config, loading
from lvsxdp.loading import Build

SIZE = 8  # bytes of an instruction
JUMPS = {0x05, 0x06}  # classes
JUMP_ALWAYS, CALL, EXIT = 0x00, 0x80, 0x90
SERVICE = "protocol: {}, address: {}, port: {}, scheduler: {}, backends: [{{address: {}}}]"
USES = {
    "ipv4": [SERVICE.format("tcp", "192.0.2.10", 80, "wlc", "10.0.0.11")],
    "ipv6": [SERVICE.format("tcp", '"2001:db8::10"', 80, "wlc", '"2001:db8::11"')],
    "sctp": [SERVICE.format("sctp", "192.0.2.10", 80, "mh", "10.0.0.11")],
    "ipsec": [SERVICE.format("udp", "192.0.2.10", 500, "sh", "10.0.0.11")],
    "locality": [SERVICE.format("tcp", "192.0.2.10", 80, "lblcr", "10.0.0.11")],
}
RULES = "marks: [{mark: 0, address: 198.18.0.0/15}]\n"


def following(code: bytes, place: int) -> Iterator[tuple[int, bool]]:
    """Where the program goes on after an instruction, and whether by a jump."""
    operation = code[place * SIZE]
    offset = int.from_bytes(code[place * SIZE + 2 : place * SIZE + 4], "little", signed=True)
    if operation & 7 not in JUMPS or operation & 0xF0 == CALL:
        yield place + 1, False
    elif operation & 0xF0 == JUMP_ALWAYS:
        yield place + offset + 1, True
    elif operation & 0xF0 != EXIT:
        yield from ((place + 1, True), (place + offset + 1, True))


def falls_back(code: bytes) -> list[tuple[int, int]]:
    """Instructions that lead back into a path to them without a jump: where from, and where to."""
    found: list[tuple[int, int]] = []
    on_path, done = {0}, set[int]()
    path = [(0, following(code, 0))]
    while path:
        place, ways = path[-1]
        for target, is_jump in ways:
            if target in on_path and not is_jump:
                found.append((place, target))
            if target not in on_path and target not in done:
                on_path.add(target)
                path.append((target, following(code, target)))
                break
        else:
            path.pop()
            on_path.remove(place)
            done.add(place)
    return found


def test_what_falls_back_to_the_head_of_its_loop_is_found() -> None:
    nothing, jump_back = bytes([0xB7] + [0] * 7), b"\x05\x00\xfe\xff\0\0\0\0"
    leave, jump_ahead = bytes([EXIT | 5] + [0] * 7), b"\x05\x00\x01\x00\0\0\0\0"
    assert falls_back(nothing + jump_back) == []
    assert falls_back(nothing + leave) == []
    # in at the second, back from the third to it, and on from the first into it
    assert falls_back(jump_ahead + nothing + nothing + b"\x05\x00\xfd\xff\0\0\0\0") == [(1, 2)]


@pytest.mark.parametrize(
    ("use", "rules"),
    [*((use, "") for use in (*USES, "all")), ("ipv4", RULES), ("ipv6", RULES)],
)
def test_no_loop_of_the_programs_goes_back_without_a_jump(
    use: str, rules: str, tmp_path: Path
) -> None:
    services = [f"- {{{service}}}" for service in USES.get(use, [])]
    text = "\n".join([rules, *(["services:"] if services else []), *services])
    loaded = config.load(text + ("\nfeatures: all\n" if use == "all" else ""))[0]
    build = Build(cache=tmp_path)
    defines = loading.defines_of(loaded, build)
    for hook in ({"HOOK_XDP": 1}, {}):
        compiled = compiler.compile_source(
            "lvsxdp.c", {**defines, **hook}, cache=build.cache, folder=build.folder
        )
        assert {name: falls_back(code) for name, code in compiled.programs.items()} == {
            name: [] for name in compiled.programs
        }
