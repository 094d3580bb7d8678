"""Compiles bpf/ with BCC; the only module that imports bcc."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvsxdp import bytecode
from lvsxdp.bytecode import Compiled, Table
from lvsxdp.errors import DatapathError
from lvsxdp.maps import Map

UAPI = Path("/usr/include/linux")
INCLUDE = re.compile(r'^#include "([a-z0-9_]+\.h)"\n', re.MULTILINE)
# Nobody reads debug information, and making it takes two seconds in five.  BCC optimises what the
# compiler gives it, so that the compiler's own passes take a third of the time for nothing.
FLAGS = ("-Wno-everything", "-g0", "-Xclang", "-disable-llvm-passes")
PRELUDE = """#define KBUILD_MODNAME "lvsxdp"
#define TABLE(type, key, value, name, size, flags) BPF_F_TABLE(type, key, value, name, size, flags);
#ifndef BPF_F_NO_PREALLOC
#define BPF_F_NO_PREALLOC 1
#endif
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE 1024
#endif
"""


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


def _kernel_header() -> Path:
    if not (UAPI / "bpf.h").exists():
        raise DatapathError(f"{UAPI} has no bpf.h: install the package linux-libc-dev")
    return UAPI / "bpf.h"


def header_tree(cache: Path) -> Path:
    """A folder of the few kernel headers that BCC looks for, made from the C library's own."""
    version = f"{_kernel_header().stat().st_mtime_ns}-2"
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


def compile_source(
    source: str,
    defines: Mapping[str, object],
    *,
    cache: Path = Path("/var/cache/lvsxdp"),
    folder: Path | None = None,
) -> Compiled:
    """The programs and tables of `source`, out of `cache` where they have been compiled before.

    Raises DatapathError with the compiler's messages, which name the real file and line.
    """
    text = PRELUDE + flatten(source, folder or sources())
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in sorted(defines.items()))]
    parts = [text, *flags, *_versions(), str(bytecode.FORMAT)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = cache / "programs" / f"{digest[:32]}.json"
    found = bytecode.kept(path)
    if found is None:
        found = _compile(source, text, flags, cache)
        bytecode.keep(path, found)
    return found


def _versions() -> list[str]:
    """What tells these kernel headers and this BCC from any others."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        raise DatapathError("bcc is missing: install the package python3-bpfcc")
    return [str(path.stat().st_mtime_ns) for path in (_kernel_header(), Path(found.origin))]


def _compile(source: str, text: str, flags: list[str], cache: Path) -> Compiled:
    os.environ["BCC_KERNEL_SOURCE"] = str(header_tree(cache))

    # bcc has no types, and mypy says so only where it is installed
    from bcc import BPF  # type: ignore[import-untyped,unused-ignore]

    failure: Exception | None = None
    with _captured_stderr() as messages:
        try:
            bpf = BPF(text=text.encode(), cflags=flags)
        except Exception as err:
            failure = err
    if failure is not None:
        raise DatapathError(f"compiling bpf/{source} failed:\n{messages[0].strip()}") from failure
    try:
        return _taken_out(bpf.module)
    finally:
        bpf.cleanup()


def _taken_out(module: Any) -> Compiled:
    """All that is in a module of BCC's."""
    from bcc import lib

    lib.bpf_table_name.restype = lib.bpf_function_name.restype = ctypes.c_char_p
    tables, places = {}, {}
    for index in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, index)
        descriptor = lib.bpf_table_fd(module, name)
        places[descriptor] = index
        made = Map(os.dup(descriptor))
        tables[name.decode()] = Table(
            type=made.type,
            key_size=made.key_size,
            value_size=made.value_size,
            capacity=made.capacity,
            flags=made.flags,
            key=json.loads(lib.bpf_table_key_desc(module, name)),
            value=json.loads(lib.bpf_table_leaf_desc(module, name)),
        )
        made.close()
    programs = {}
    for index in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, index)
        start, size = lib.bpf_function_start(module, name), lib.bpf_function_size(module, name)
        programs[name.decode()] = bytecode.numbered(ctypes.string_at(start, size), places)
    return Compiled(tables, programs)
