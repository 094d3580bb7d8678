"""`scripts/bench report`: writes docs/performance.md and its pictures from the results on record.

The template's `{{BENCH table}}`, `{{BENCH machine}}`, `{{BENCH NAME}}` and `{{BENCH CASE NAME}}`
become a table, the machine, and figures of bench/results/BENCH.json.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import record

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "bench/performance.template.md"
PAGE = ROOT / "docs/performance.md"
PICTURES = ROOT / "docs/pictures"
PLACE = re.compile(r"\{\{(\w+) ([\w/]+)(?: (\w+))?\}\}")
NANOSECONDS = ("min", "median", "net", "target", "stretch")
COLUMNS = {
    "packet": NANOSECONDS,
    "marks": (*NANOSECONDS, "beyond"),
    "schedulers": ("backends", *NANOSECONDS, "connection"),
    "control": ("unit", "min", "median", "max", "target"),
    "stages": ("net", "step"),
    "throughput": ("min", "median", "max", "ns_above_generator"),
    "instructions": ("min", "max", "above_generator", "ipvs_by_ours"),
    "cpus": ("min", "median", "max", "ratio", "ratio_of_best", "wanted_ratio"),
    "ageing": ("unit", "min", "median", "lines_a_second", "target"),
}
HEADS = {
    "min": "minimum",
    "max": "maximum",
    "ns_above_generator": "ns beyond the generator",
    "lines_a_second": "lines a second",
    "above_generator": "beyond the generator",
    "ipvs_by_ours": "IPVS's by ours",
    "ratio_of_best": "ratio of the best",
    "wanted_ratio": "wanted",
}
MEANINGS = {
    "dr_established_1": "one flow",
    "dr_established_16k": "16,384 flows",
    "dr_established_1m": "1,048,576 flows",
    "dr6_established_1": "one flow, IPv6",
    "nat_request_1": "one flow, to its backend by nat, with another port",
    "nat_reply_1": "the same flow, back to its client",
    "fullnat_request_1": "one flow, to its backend by fullnat",
    "fullnat_reply_1": "the same flow, back to its client",
    "room": "room made before the packet and taken away, nothing else",
    "tunnel_established_1": "one flow, by ipip",
    "tunnel_established_1m": "1,048,576 flows, by ipip",
    "tunnel6_established_1": "one flow, IPv6 in IPv6",
    "tunnel_gue_csum_1": "one flow, by gue with a checksum",
    "tunnel_gre_1": "one flow, by gre",
    "new_persistent_hit": "new connection, entry found",
    "new_persistent_miss": "new connection, entry made",
    "not_ours": "no service",
    "lvsxdp_dr": "native XDP, direct routing",
    "lvsxdp_nat": "native XDP, to its backend by nat, with another port",
    "lvsxdp_tunnel": "native XDP, by ipip",
    "ipvs_dr": "kernel IPVS, `-g`",
    "ipvs_nat": "kernel IPVS, `-m`",
    "ipvs_tunnel": "kernel IPVS, `-i`",
    "generator": "each frame ends where a balancer would get it",
    "nft_dnat_numgen": "one rule, `dnat to numgen inc mod 2 map`",
    "nft_dnat_map": "kube-proxy's chains, `numgen random mod 2 vmap`",
    "forward": "a route, no rule",
    "run": "`lvsxdp run` at its own interval",
    "sweep": "with counts healed",
}
LABELS = {
    "lvsxdp_dr": "lvsxdp",
    "nft_dnat_numgen": "nftables, numgen",
    "nft_dnat_map": "nftables, as kube-proxy",
    "forward": "plain forwarding",
}
Documents = Mapping[str, Mapping[str, Any]]


def documents(folder: Path = record.RESULTS) -> dict[str, dict[str, Any]]:
    """Every result on record by the name of its bench."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def page(template: str, found: Documents) -> str:
    """The template with all its places filled; KeyError names what no result has."""

    def fill(match: re.Match[str]) -> str:
        bench, name, field = match.groups()
        if field:
            return record.number(cases(found[bench])[name][field])
        if name == "table":
            return table(bench, found[bench])
        if name == "machine":
            return machine(found[bench])
        return record.number(found[bench][name])

    return PLACE.sub(fill, template)


def cases(found: Mapping[str, Any]) -> dict[str, Any]:
    """A document's cases by name, nested figures by NAME_PART."""
    flat = {}
    for case in found["cases"]:
        nested = {n: v for n, v in case.items() if isinstance(v, dict)}
        parts = {f"{n}_{key}": v for n, values in nested.items() for key, v in values.items()}
        flat[case["case"]] = {**case, **parts}
    return flat


def machine(found: Mapping[str, Any]) -> str:
    """The machine, the rounds and the day, in words."""
    on = found["machine"]
    return (
        f"{on['cpu']}, {on['cpus']} CPUs, Linux {on['kernel']}, HZ {on['hz']}, BCC {on['bcc']}; "
        f"{found['rounds']} rounds; {on['date']}"
    )


def table(bench: str, found: Mapping[str, Any]) -> str:
    """A bench's cases as a table of Markdown."""
    columns = COLUMNS[bench]
    heads = ["case", *(HEADS.get(name, name) for name in columns)]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for case in found["cases"]:
        meaning = MEANINGS.get(case["case"], "")
        name = f"`{case['case']}`" + (f": {meaning}" if meaning else "")
        lines.append(_row([name, *(record.number(case.get(column)) for column in columns)]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ------------------------------------------------------------------------------------- pictures


def draw(found: Documents, folder: Path) -> None:
    """Writes the pictures; the same results give the same files."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "lvsxdp", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("flows", _flows), ("throughput", _throughput), ("stages", _stages)):
        _save(picture, found, folder / f"{name}.svg")


def _save(picture: Any, found: Documents, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 2.8))
    picture(axes, found)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def _flows(axes: Any, found: Documents) -> None:
    known = cases(found["packet"])
    for prefix, label in (("dr_established", "lvsxdp"), ("line", "one cache line, nothing else")):
        points = [known[f"{prefix}_{size}"] for size in ("1", "16k", "1m")]
        axes.plot([p["flows"] for p in points], [p["net"] for p in points], marker="o", label=label)
    targets = [known[f"dr_established_{size}"] for size in ("1", "16k", "1m")]
    axes.plot(
        [p["flows"] for p in targets],
        [p["target"] for p in targets],
        ":",
        color="grey",
        label="target",
    )
    axes.set(xscale="log", xlabel="flows", ylabel="ns a packet, net")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _throughput(axes: Any, found: Documents) -> None:
    known = cases(found["throughput"])
    names = [name for name in known if name in LABELS][::-1]
    middle = [known[name]["median"] / 1e6 for name in names]
    spread = [
        [m - known[name]["min"] / 1e6 for m, name in zip(middle, names, strict=True)],
        [known[name]["max"] / 1e6 - m for m, name in zip(middle, names, strict=True)],
    ]
    axes.barh([LABELS[name] for name in names], middle, xerr=spread, ecolor="grey")
    axes.set_xlabel("million packets a second, median, minimum to maximum")


def _stages(axes: Any, found: Documents) -> None:
    rows = [case for case in found["stages"]["cases"] if "/" in case["case"]]
    names = list(dict.fromkeys(row["case"].partition("/")[0] for row in rows))[::-1]
    stages = list(dict.fromkeys(row["case"].partition("/")[2] for row in rows))
    for name in names:
        left = 0.0
        for row in (r for r in rows if r["case"].startswith(f"{name}/")):
            width, stage = max(row["net"] - left, 0), row["case"].partition("/")[2]
            axes.barh(name, width, left=left, color=f"C{stages.index(stage)}")
            if width > 8:
                middle = left + width / 2
                axes.text(middle, name, stage, ha="center", va="center", rotation=90, size=7)
            left += width
    axes.set_xlabel("ns a packet, net, up to each stage")


def main() -> None:
    """Writes the page and its pictures."""
    argparse.ArgumentParser(prog="scripts/bench report", description=__doc__).parse_args()
    found = documents()
    PAGE.write_text(page(TEMPLATE.read_text(), found))
    draw(found, PICTURES)


if __name__ == "__main__":
    main()
