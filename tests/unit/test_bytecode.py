"""Compiled code as data: what is filled in before it is loaded, and what is kept on disk."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lvsxdp import bytecode, compiler
from lvsxdp.bytecode import Compiled, Links, Table
from lvsxdp.errors import DatapathError

TABLE = Table(2, 4, 8, 16, 1024, "unsigned int", ["row", [["word", "unsigned long long"]]])


def load_64(register: int, source: int, number: int) -> bytes:
    """The two halves of an instruction that loads 64 bits."""
    return struct.pack("<BBhiBBhi", 0x18, source << 4 | register, 0, number, 0, 0, 0, 0)


# moves 0x18 into r0, in whose place nothing is to be filled in, and ends
END = struct.pack("<BBhi", 0xB7, 0, 0, 0x18) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def compiled(code: bytes) -> Compiled:
    return Compiled({"first": TABLE, "second": TABLE}, {"entry": code})


@pytest.mark.parametrize(
    ("source", "number", "wanted"),
    [
        (bytecode.MAP, 1, load_64(3, bytecode.MAP, 41)),
        (bytecode.VALUE_OF_MAP, 9, load_64(3, bytecode.VALUE_OF_MAP, 57)),
        (0, 1, load_64(3, 0, 1)),
    ],
)
def test_descriptors_are_filled_in(source: int, number: int, wanted: bytes) -> None:
    links = Links({"first": 40, "second": 41}, {9: 57}, (5, 6))
    assert compiled(load_64(3, source, number) + END).linked("entry", links) == wanted + END


def test_a_hash_key_becomes_a_number_of_64_bits() -> None:
    links = Links(keys=(0, 0xFEDCBA9876543210))
    wanted = struct.pack("<BBhIBBhI", 0x18, 3, 0, 0x76543210, 0, 0, 0, 0xFEDCBA98)
    assert compiled(load_64(3, bytecode.HASH_KEY, 1) + END).linked("entry", links) == wanted + END


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DatapathError, match="no program other"):
        compiled(END).linked("other", Links())


def test_code_names_tables_by_place_whatever_their_descriptors_were() -> None:
    code = load_64(1, bytecode.MAP, 77) + load_64(2, bytecode.VALUE_OF_MAP, 77) + END
    wanted = load_64(1, bytecode.MAP, 1) + load_64(2, bytecode.VALUE_OF_MAP, 77) + END
    assert bytecode.numbered(code, {12: 0, 77: 1}) == wanted


# ------------------------------------------------------------------------------------- on disk


def test_what_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new/one.json"
    assert bytecode.kept(path) is None
    bytecode.keep(path, compiled(END))
    assert bytecode.kept(path) == compiled(END)
    assert [found.name for found in path.parent.iterdir()] == ["one.json"]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_as_if_there_were_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "one.json"
    bytecode.keep(path, compiled(END))
    whole = path.read_bytes()
    harmed = {"cut": whole[:-7], "changed": whole.replace(b"first", b"thirst"), "empty": b""}
    path.write_bytes(harmed[damage])
    assert bytecode.kept(path) is None


def test_a_place_where_nothing_can_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bytecode.keep(tmp_path / "file/one.json", compiled(END))
    assert bytecode.kept(tmp_path / "file/one.json") is None


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "KEPT", 2)
    for age, name in ((30, "old"), (20, "used"), (10, "young")):
        bytecode.keep(tmp_path / name, compiled(END))
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
        bytecode.kept(tmp_path / "used")
    assert {path.name for path in tmp_path.iterdir()} == {"used", "young"}


# ------------------------------------------------------------------------------------- compiling

SOURCE = "#include <uapi/linux/bpf.h>\nint entry(struct xdp_md *ctx)\n{\n\treturn ANSWER;\n}\n"


def test_what_has_been_compiled_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.c").write_text(SOURCE)

    def programs(answer: int) -> bytes:
        made = compiler.compile_source("x.c", {"ANSWER": answer}, cache=tmp_path, folder=tmp_path)
        return made.programs["entry"]

    two, three = programs(2), programs(3)
    assert two != three
    monkeypatch.setattr(compiler, "_compile", None)
    assert (programs(2), programs(3)) == (two, three)
    (tmp_path / "x.c").write_text(SOURCE.replace("ANSWER", "ANSWER + 1"))
    with pytest.raises(TypeError):
        programs(2)


def test_a_process_without_the_compiler_finds_what_another_compiled(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text(SOURCE)
    made = compiler.compile_source("x.c", {"ANSWER": 2}, cache=tmp_path, folder=tmp_path)
    text = (
        "import sys; from pathlib import Path; from lvsxdp import compiler\n"
        "folder = Path(sys.argv[1])\n"
        "made = compiler.compile_source('x.c', {'ANSWER': 2}, cache=folder, folder=folder)\n"
        "print(made.programs['entry'].hex(), 'bcc' in sys.modules)"
    )
    argv = [sys.executable, "-c", text, str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert said == [made.programs["entry"].hex(), "False"]
