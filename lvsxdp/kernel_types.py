"""Where fields are in the running kernel's structs, from its own description of its types (BTF)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

from lvsxdp import libbpf
from lvsxdp.errors import DatapathError

STRUCT = 4
DESCRIPTION = "/sys/kernel/btf/vmlinux"


class _Type(ctypes.Structure):
    """struct btf_type; of a struct or union, its members follow."""

    _fields_ = [
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
    ]


class _Member(ctypes.Structure):
    """struct btf_member; the offset is in bits."""

    _fields_ = [
        ("name", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    ]


def offsets(fields: Iterable[tuple[str, str]]) -> list[int]:
    """The offset in bytes of each (struct, field); DatapathError where the kernel does not tell."""
    library = _library()
    types = ctypes.c_void_p(library.btf__load_vmlinux_btf())
    if not types:
        raise DatapathError(f"the kernel has no description of its types ({DESCRIPTION})")
    try:
        return [_offset(library, types, struct, field) for struct, field in fields]
    finally:
        library.btf__free(types)


def _library() -> ctypes.CDLL:
    library = libbpf.library()
    library.btf__load_vmlinux_btf.restype = ctypes.c_void_p
    library.btf__type_by_id.restype = ctypes.c_void_p
    library.btf__name_by_offset.restype = ctypes.c_char_p
    return library


def _offset(library: ctypes.CDLL, types: ctypes.c_void_p, struct: str, field: str) -> int:
    identity = library.btf__find_by_name_kind(types, struct.encode(), STRUCT)
    if identity > 0:
        for name, offset in _members(library, types, identity):
            if name == field:
                return offset // 8
    raise DatapathError(f"the kernel has no {struct}.{field} ({DESCRIPTION})")


def _members(
    library: ctypes.CDLL, types: ctypes.c_void_p, identity: int
) -> Iterator[tuple[str, int]]:
    """Names and offsets in bits of a struct's members, and of those of its members with no name."""
    address = library.btf__type_by_id(types, identity)
    count = _Type.from_address(address).info & 0xFFFF
    for member in (_Member * count).from_address(address + ctypes.sizeof(_Type)):
        name = library.btf__name_by_offset(types, member.name).decode()
        # the upper byte is the width of a bit field
        offset = member.offset & 0xFFFFFF
        if name:
            yield name, offset
            continue
        for inner, further in _members(library, types, member.type):
            yield inner, offset + further
