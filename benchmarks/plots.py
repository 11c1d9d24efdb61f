"""The plots, PNG and SVG: ``python plots.py peers.json FOLDER`` in an environment with matplotlib.

Law: it reads the file that the run wrote and nothing else; what a system could not do is left out.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

OWN, OWN_COLOUR, LIMIT = "Skate", "#d1495b", "the limit"
COLOURS = {
    "Ray Serve": "#2a6f97",
    "Ray Serve, HAProxy": "#61a5c2",
    "Mosec": "#8a6fb0",
    "LitServe": "#c77dff",
    "BentoML": "#7f7f7f",
    "uvicorn + Starlette": "#52796f",
    "uvicorn + FastAPI": "#84a98c",
    "grpc.aio": "#b08968",
    LIMIT: "#cccccc",
}
Seen = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


def medians(seen: Seen, group: str, work: str, measure: str) -> dict[str, float]:
    """By system."""
    found = seen.get(group, {}).get(work, {}).get(measure, {})
    return {system: statistics.median(rounds) for system, rounds in found.items() if rounds}


def colour(system: str) -> str:
    return OWN_COLOUR if system == OWN else COLOURS.get(system, "#999999")


def dots(axes: Any, values: dict[str, float], title: str, unit: str) -> None:
    """One dot for each system on a logarithmic scale (a bar would have no beginning there), the best on top."""
    falling = unit.split()[0] not in ("p50", "p99", "CPU", "s", "private", "ms")
    names = sorted(values, key=lambda name: values[name], reverse=not falling)
    for number, name in enumerate(names):
        value = values[name]
        axes.plot(value, number, "o", color=colour(name), markersize=10 if name == OWN else 7)
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.annotate(text, (value, number), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    least, most = min(values.values()), max(values.values())
    axes.set_xlim(10 ** math.floor(math.log10(least)), 10 ** (math.log10(most) // 1 + 1.4))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(alpha=0.3)
    axes.set_title(f"{title}: {unit}", fontsize=10)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def panel(seen: Seen, cells: list[tuple[str, str, str, str]], columns: int) -> Any:
    """A figure of such; None if there is nothing to draw."""
    drawn = [
        (values, title, unit) for group, work, unit, title in cells if (values := medians(seen, group, work, unit))
    ]
    if not drawn:
        return None
    rows = -(-len(drawn) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.6 * columns, 2.7 * rows), squeeze=False)
    for place in axes.flat[len(drawn) :]:
        place.set_visible(False)
    for place, (values, title, unit) in zip(axes.flat, drawn, strict=False):
        dots(place, values, title, unit)
    figure.tight_layout()
    return figure


def by_connections(seen: Seen) -> Any:
    """Requests a second and p99 over the number of connections."""
    counts = (1, 16, 64, 256)
    names = [f"hello, {count} connection{'s' if count > 1 else ''}" for count in counts]
    systems = sorted({who for name in names for who in medians(seen, "http", name, "requests/s")})
    if not systems:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
    for place, measure in zip(axes, ("requests/s", "p99 µs"), strict=True):
        for who in systems:
            points = [(c, medians(seen, "http", n, measure).get(who)) for c, n in zip(counts, names, strict=True)]
            kept = [(count, value) for count, value in points if value]
            place.plot(
                *zip(*kept, strict=True), marker="o", label=who, color=colour(who), linewidth=2.5 if who == OWN else 1.3
            )
        place.set_xscale("log", base=2)
        place.set_yscale("log")
        place.set_xticks(counts, [str(count) for count in counts])
        place.set_xlabel("connections")
        place.set_title(f"HTTP hello, one replica: {measure}", fontsize=10)
        place.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    return figure


HTTP = [
    ("http", "hello, 64 connections", "requests/s", "hello, 64 connections"),
    ("http", "hello, 1 connection", "p50 µs", "hello, 1 connection"),
    ("http", "hello, 64 connections", "CPU µs", "CPU of all processes a request"),
    ("http", "POST of 1 MB, 16 connections", "requests/s", "POST of 1 MB"),
    ("models", "await asyncio.sleep, 64 connections", "requests/s", "async model of 10 ms, 4 replicas"),
    ("streams", "1,000 chunks of 16 bytes, 32 clients", "requests/s", "streams of 1,000 chunks"),
    ("streams", "WebSocket echo, 64 clients", "messages/s", "WebSocket echo, 64 clients"),
    ("fastapi", "64 connections", "requests/s", "FastAPI and two children"),
]
CALLS = [
    ("handles", "call, 1 in flight", "p50 µs", "call between processes"),
    ("handles", "calls, 64 in flight", "calls/s", "64 in flight"),
    ("handles", "chain of 10, 1 in flight", "p50 µs", "chain of 10"),
    ("handles", "stream", "items/s", "stream"),
    ("handles", "array of 10 MB", "MB/s", "array of 10 MB"),
    ("handles", "array of 100 MB", "MB/s", "array of 100 MB"),
]
START = [
    ("start", "start", "s to the first answer", "start"),
    ("start", "start", "private MB", "memory, all processes"),
]


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    seen: Seen = json.loads(source.read_text())["seen"]
    figures = {
        "peers-http": panel(seen, HTTP, 2),
        "peers-connections": by_connections(seen),
        "peers-handles": panel(seen, CALLS, 2),
        "peers-start": panel(seen, START, 2),
    }
    for name, figure in figures.items():
        if figure is not None:
            for kind in ("png", "svg"):
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(folder / f"{name}.{kind}", dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
