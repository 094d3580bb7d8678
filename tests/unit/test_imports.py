"""Who imports whom: one module for each outer library, and decisions apart from actions."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "lvsxdp"
TREES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
PURE = [
    *("errors", "model", "document", "config", "checks", "names", "scalars", "marks", "scheduling"),
    *("records", "schema", "writes", "book", "filtering", "marking", "sharing", "tables"),
    *("thresholds", "maglev", "locality", "lookups"),
    *("rule_index", "mark_words", "pieces", "stored", "dumping", "placing"),
    *("covering", "driver_refusals", "filter_rules"),
    *("show", "entries", "rates", "snapshot", "changes", "features", "json_schema", "setting"),
]
ACTING = {
    "bytecode",
    "compiler",
    "libbpf",
    "maps",
    "network",
    "interfaces",
    "controller",
    "loading",
    "attaching",
    "applying",
    "linking",
    "pinning",
    "upgrading",
    "daemon",
    "swapping",
    "journal",
    "backup",
    "confirming",
    "recovery",
    "ageing",
    "forgetting",
    "counting",
    "estimating",
    "views",
    *("roads", "watching", "kernel_types", "device", "listening", "netfilter"),
    *("cli", "command", "entry_commands", "service_commands", "settings_commands"),
    "backend_options",
}
COMMANDS = {
    *("cli", "command", "entry_commands", "service_commands", "settings_commands"),
    "backend_options",
}
HOMES = {
    "bcc": "compiler",
    "pyroute2": "network",
    "psutil": "network",
    "numpy": "entries",
    "yaml": "document",
}


def modules_of(node: ast.AST) -> set[str]:
    """What one statement imports: outer packages by name, our own as `lvsxdp.name`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return set()
    if node.module == "lvsxdp":
        return {f"lvsxdp.{alias.name}" for alias in node.names}
    return {node.module}


def imports(tree: ast.AST) -> set[str]:
    return set().union(*(modules_of(node) for node in ast.walk(tree)))


def at_the_top(tree: ast.Module) -> set[str]:
    """What is imported when the module is."""
    return set().union(*map(modules_of, run_at_import(tree)))


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything outside functions that a type checker is not alone to see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types(node):
            continue
        yield node
        yield from run_at_import(node)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def outer(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("lvsxdp.")}


@pytest.mark.parametrize(("library", "home"), HOMES.items())
def test_a_library_is_imported_by_one_module(library: str, home: str) -> None:
    assert {name for name, tree in TREES.items() if library in outer(imports(tree))} == {home}


def test_only_the_commands_know_the_command_line() -> None:
    assert {name for name, tree in TREES.items() if "click" in outer(imports(tree))} == COMMANDS


@pytest.mark.parametrize("library", ["bcc", "pyroute2", "numpy"])
def test_a_library_that_loads_slowly_is_imported_where_it_is_needed(library: str) -> None:
    assert library not in outer(at_the_top(TREES[HOMES[library]]))


@pytest.mark.parametrize("module", PURE)
def test_a_module_that_decides_does_not_import_one_that_acts(module: str) -> None:
    assert own(imports(TREES[module])) & ACTING == set()


@pytest.mark.parametrize("module", [name for name in PURE if name != "show"])
def test_a_module_that_decides_knows_no_file_of_state(module: str) -> None:
    assert "state" not in own(imports(TREES[module]))


LOADED = """
import sys
from lvsxdp import cli
cli.main(sys.argv[1:], standalone_mode=False)
print("loaded:", *sorted(sys.modules))
"""


def test_the_help_of_a_command_loads_no_heavy_library() -> None:
    argv = [sys.executable, "-c", LOADED, "backend", "edit", "--help"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    modules = set(said.rpartition("loaded:")[2].split())
    assert "lvsxdp.cli" in modules
    assert modules & {"bcc", "numpy", "yaml", "pyroute2"} == set()
