"""What comes out: Markdown for the README, and every measurement as JSON."""

import os
import platform
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median

from measure import Results, Turn, Unit

PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino", "nncf", "pillow", "simplejpeg", "scikit-learn")


def machine(threads: int) -> dict[str, object]:
    """The machine, the day and the versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def heading(machine: dict[str, object], rounds: int) -> str:
    """One paragraph that says where, when and what was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} logical cores, {machine['memory_gib']} GiB; "
        f"{machine['threads']} threads; {machine['date']}; Python {machine['python']}, {versions}. "
        f"Median (least–most) of {rounds} interleaved rounds; a ratio is one of speeds: above 1, Luthier is faster."
    )


def markdown(results: Results) -> str:
    """The table of a group."""
    lines = [f"**{results.title}**", "", f"| | {results.unit.value} | Luthier ÷ row |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {_figures(turns, results.unit)} | {_ratios(results, name)} |"
        for name, turns in results.turns.items()
    ]
    return "\n".join(lines)


def raw(results: Results) -> dict[str, object]:
    """Every turn of a group."""
    rows = {name: [asdict(turn) for turn in turns] for name, turns in results.turns.items()}
    return {"title": results.title, "rows": rows}


def _figures(turns: list[Turn], unit: Unit) -> str:
    figures = [turn.show(unit) for turn in turns]
    return f"{_figure(median(figures))} ({_figure(min(figures))}–{_figure(max(figures))})"


def _ratios(results: Results, name: str) -> str:
    ratios = [(label, results.ratio(name, rival)) for label, rival in results.against[name].items()]
    return ", ".join(f"{ratio:.2f} {label}".strip() for label, ratio in ratios)


def _figure(value: float) -> str:
    """Three figures, and no decimals from 100 on."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _processor() -> str:
    """The processor's name; where there is no /proc, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
