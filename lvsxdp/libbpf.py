"""libbpf by ctypes: the library, its structures, its errors."""

from __future__ import annotations

import ctypes
import errno
import functools
import os

from lvsxdp.errors import DatapathError


class LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("btf_descriptor", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("kernel_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_descriptor", ctypes.c_uint32),
        ("attach_btf_descriptor", ctypes.c_uint32),
        ("descriptors", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_count", ctypes.c_uint32),
        ("func_info_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_count", ctypes.c_uint32),
        ("line_info_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log", ctypes.c_char_p),
    ]


class RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("context_in", ctypes.c_void_p),
        ("context_out", ctypes.c_void_p),
        ("context_size_in", ctypes.c_uint32),
        ("context_size_out", ctypes.c_uint32),
        ("verdict", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


class MapInfo(ctypes.Structure):
    """struct bpf_map_info, with room for what newer kernels add."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 128),
    ]


class MapOptions(ctypes.Structure):
    """struct bpf_map_create_opts."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("btf_descriptor", ctypes.c_uint32),
        ("btf_key", ctypes.c_uint32),
        ("btf_value", ctypes.c_uint32),
        ("btf_kernel_value", ctypes.c_uint32),
        ("inner_descriptor", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
    ]


class ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, with room for what newer kernels add."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_length", ctypes.c_uint32),
        ("translated_length", ctypes.c_uint32),
        ("jited", ctypes.c_uint64),
        ("translated", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("uid", ctypes.c_uint32),
        ("map_count", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 256),
    ]


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("descriptor", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("program", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf, kept quiet: its errors come back as numbers."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as err:
        raise DatapathError("libbpf.so.1 is missing: install the package libbpf1") from err
    library.libbpf_set_print(None)
    return library


def failure(what: str, result: int) -> DatapathError:
    """The error of a call that gave `result`: a negative number, or -1 and errno."""
    number = -result if result < -1 else ctypes.get_errno()
    return DatapathError(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
