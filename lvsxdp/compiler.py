"""Compiles bpf/ with BCC and loads the programs with libbpf; the only module that imports bcc."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvsxdp import maps
from lvsxdp.errors import DatapathError

# An instruction that loads 64 bits, and the kind of them that is a place in a map's only value.
LOAD_64, VALUE_OF_MAP = 0x18, 2
UAPI = Path("/usr/include/linux")
INCLUDE = re.compile(r'^#include "([a-z0-9_]+\.h)"\n', re.MULTILINE)
FRESH = (
    "#define TABLE(type, key, value, name, size, flags) "
    "BPF_F_TABLE(type, key, value, name, size, flags);\n"
)
PINNED = (
    "#define TABLE(type, key, value, name, size, flags) "
    'BPF_TABLE_PINNED(type, key, value, name, size, PIN_FOLDER "/" #name, flags);\n'
)
# Nobody reads debug information, and making it takes two seconds in five.  BCC optimises what the
# compiler gives it, so that the compiler's own passes take a third of the time for nothing.
FLAGS = ("-Wno-everything", "-g0", "-Xclang", "-disable-llvm-passes")
PRELUDE = """#define KBUILD_MODNAME "lvsxdp"
#ifndef BPF_F_NO_PREALLOC
#define BPF_F_NO_PREALLOC 1
#endif
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE 1024
#endif
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A program's bytecode, with the map descriptors of this process in it."""

    name: str
    code: bytes


def sources() -> Path:
    """The folder of the C sources: inside the installed package, else beside it."""
    here = Path(__file__).resolve().parent
    inside = here / "bpf"
    return inside if inside.is_dir() else here.parent / "bpf"


def digest(folder: Path) -> str:
    """What tells these C sources from any others."""
    texts = [path.read_bytes() for path in sorted(folder.glob("*.[ch]"))]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def flatten(name: str, folder: Path) -> str:
    """The text of a source with its local includes pasted in, each line traceable to its file."""

    def paste(match: re.Match[str]) -> str:
        return f'{flatten(match.group(1), folder)}#line {line_after(match)} "bpf/{name}"\n'

    text = (folder / name).read_text()

    def line_after(match: re.Match[str]) -> int:
        return text.count("\n", 0, match.end()) + 1

    return f'#line 1 "bpf/{name}"\n' + INCLUDE.sub(paste, text)


def header_tree(cache: Path) -> Path:
    """A folder of the few kernel headers that BCC looks for, made from the C library's own."""
    if not (UAPI / "bpf.h").exists():
        raise DatapathError(f"{UAPI} has no bpf.h: install the package linux-libc-dev")
    version = f"{os.stat(UAPI / 'bpf.h').st_mtime_ns}-2"
    tree = cache / f"headers-{version}"
    if tree.is_dir():
        return tree
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "tree"
        _fill_header_tree(made / "include")
        with contextlib.suppress(FileExistsError, OSError):
            made.rename(tree)
    return tree


STUBS = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/types.h": "#pragma once\n#include <uapi/linux/types.h>\n"
    "typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;\n"
    "typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;\n"
    "typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;\n"
    "typedef _Bool bool;\n#define true 1\n#define false 0\n#ifndef NULL\n#define NULL ((void *)0)\n"
    "#endif\n#ifndef __always_inline\n"
    "#define __always_inline inline __attribute__((always_inline))\n"
    '#endif\n#ifndef barrier\n#define barrier() asm volatile("" ::: "memory")\n#endif\n',
    "linux/stddef.h": "#pragma once\n#include <uapi/linux/stddef.h>\n",
    "linux/log2.h": "",
    "asm/page.h": "#define PAGE_SIZE 4096\n",
    "uapi/linux/bpf.h": "",
    "linux/bpf.h": "",
}


def _fill_header_tree(include: Path) -> None:
    """Copies the UAPI headers to where they are looked for, then lays the stubs over."""
    ignore = shutil.ignore_patterns("netfilter*", "usb", "dvb", "sched", "tc_ematch")
    shutil.copytree(UAPI, include / "uapi/linux", ignore=ignore)
    (include / "linux").mkdir(parents=True)
    for header in (include / "uapi/linux").glob("*.h"):
        (include / "linux" / header.name).symlink_to(f"../uapi/linux/{header.name}")
    machine = next(Path("/usr/include").glob("*-linux-gnu*/asm"), None)
    if machine is None:
        raise DatapathError("/usr/include has no asm headers: install the package linux-libc-dev")
    shutil.copytree(machine, include / "uapi/asm")
    shutil.copytree(machine, include / "asm")
    generic = Path("/usr/include/asm-generic")
    shutil.copytree(generic, include / "asm-generic")
    shutil.copytree(generic, include / "uapi/asm-generic")
    for name, text in STUBS.items():
        place = include / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_text(text)
    (include / "linux/version.h").unlink(missing_ok=True)
    shutil.copy(UAPI / "version.h", include / "linux/version.h")


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """What C code writes to descriptor 2 meanwhile, as one string in the list, at the end."""
    out: list[str] = []
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield out
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            out.append(file.read().decode(errors="replace"))


class Module:
    """A compiled source: its maps, and the bytecode of its programs."""

    def __init__(
        self,
        source: str,
        defines: Mapping[str, object],
        *,
        pins: Path | None = None,
        cache: Path = Path("/var/cache/lvsxdp"),
        folder: Path | None = None,
    ) -> None:
        """Compiles `source`; with `pins`, its tables are the maps pinned there, else new ones.

        Raises DatapathError with the compiler's messages, which name the real file and line.
        """
        os.environ["BCC_KERNEL_SOURCE"] = str(header_tree(cache))
        text = PRELUDE + (PINNED if pins else FRESH) + flatten(source, folder or sources())
        values = {**defines, **({"PIN_FOLDER": f'"{pins}"'} if pins else {})}
        flags = [*FLAGS, *(f"-D{name}={value}" for name, value in values.items())]

        # bcc has no types, and mypy says so only where it is installed
        from bcc import BPF  # type: ignore[import-untyped,unused-ignore]

        with _captured_stderr() as messages:
            try:
                self._bpf: Any = BPF(text=text.encode(), cflags=flags)
            except Exception as err:
                failure: Exception | None = err
            else:
                failure = None
        if failure is not None:
            raise DatapathError(
                f"compiling bpf/{source} failed:\n{messages[0].strip()}"
            ) from failure

    def program(self, function: str, flat: Mapping[int, int]) -> Program:
        """The bytecode of one function; `flat` gives the descriptors of flat tables by number."""
        from bcc import lib

        module, name = self._bpf.module, function.encode()
        size = lib.bpf_function_size(module, name)
        if not size:
            raise DatapathError(f"there is no program {function} in the compiled module")
        start = lib.bpf_function_start(module, name)
        return Program(function, _with_tables(ctypes.string_at(start, size), flat))

    def table_descriptor(self, name: str) -> int:
        """The file descriptor of a table, owned by this module."""
        from bcc import lib

        return int(lib.bpf_table_fd(self._bpf.module, name.encode()))

    def tables(self) -> dict[str, dict[str, Any]]:
        """For each table: `key` and `value` layouts as BCC describes them in JSON."""
        from bcc import lib

        module = self._bpf.module
        lib.bpf_table_name.restype = ctypes.c_char_p
        found: dict[str, dict[str, Any]] = {}
        for index in range(lib.bpf_num_tables(module)):
            name = lib.bpf_table_name(module, index).decode()
            found[name] = {
                "key": json.loads(lib.bpf_table_key_desc(module, name.encode())),
                "value": json.loads(lib.bpf_table_leaf_desc(module, name.encode())),
            }
        return found

    def close(self) -> None:
        """Frees the module and its own descriptors; pins and loaded programs stay."""
        self._bpf.cleanup()


def _with_tables(code: bytes, flat: Mapping[int, int]) -> bytes:
    """The code with the descriptor of each flat table where its number stands."""
    out, place = bytearray(code), 0
    while place < len(code):
        operation, registers, number = struct.unpack_from("<BBxxI", code, place)
        if operation == LOAD_64 and registers >> 4 == VALUE_OF_MAP:
            struct.pack_into("<I", out, place + 4, flat[number])
        place += 16 if operation == LOAD_64 else 8
    return bytes(out)


def load_all(
    module: Module,
    functions: Sequence[str],
    kind: maps.ProgramType,
    flat: Mapping[int, int] | None = None,
) -> dict[str, int]:
    """Loads functions of a module; gives a descriptor for each name, or raises and keeps none."""
    loaded: dict[str, int] = {}
    try:
        for function in functions:
            program = module.program(function, flat or {})
            loaded[function] = maps.load_program(program.name, program.code, kind)
    except DatapathError:
        for descriptor in loaded.values():
            os.close(descriptor)
        raise
    return loaded
