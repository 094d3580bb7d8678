"""Asks nft and iptables what rules this network namespace has."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from lvsxdp import filter_rules
from lvsxdp.filter_rules import FilterRule
from lvsxdp.model import Config

# How long a program may take to list its rules, in seconds.
PATIENCE = 2.0
# Where the kernel names the tables of iptables that are not nft's.
TABLES = {"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}

Run = Callable[..., str]


def warnings(config: Config, before: Config | None = None) -> list[str]:
    """A line for each rule of this host that expects what is balanced; of `before`, without those
    that it has already, and one for each program that was too slow."""
    if not config.services:
        return []
    slow: list[str] = []
    rules = list(_rules(lambda *argv: _listed(argv, slow)))
    known = set(filter_rules.warnings(rules, before)) if before else set()
    return [*slow, *(w for w in filter_rules.warnings(rules, config) if w not in known)]


def _rules(run: Run) -> Iterator[FilterRule]:
    listed = run("nft", "-j", "list", "ruleset")
    if listed:
        yield from filter_rules.nft_rules(listed)
    for name, tables in TABLES.items():
        if '"xt"' in listed:
            # iptables made these, and nft does not print the marks that they set
            made = filter_rules.iptables_rules(f"{name}-nft", run(f"{name}-nft-save"))
            yield from (dataclasses.replace(rule, ranges=()) for rule in made)
        if _has_tables(tables):
            yield from filter_rules.iptables_rules(f"{name}-legacy", run(f"{name}-legacy-save"))


def _has_tables(name: str) -> bool:
    path = Path("/proc/thread-self/net", name)
    return path.exists() and bool(path.read_text())


def _listed(argv: tuple[str, ...], slow: list[str]) -> str:
    """What a program printed; nothing where it is not there, or the kernel has no such rules."""
    program = shutil.which(argv[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return ""
    words = [program, *argv[1:]]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        slow.append(
            f"{argv[0]} took more than {PATIENCE:g} s to list its rules: "
            "whether they name what is balanced is not known"
        )
        return ""
    return done.stdout if done.returncode == 0 else ""
