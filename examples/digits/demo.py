"""The main job from outside: starts the application with `skate run`, posts held-out images, measures, stops it.

    python -m examples.digits.demo [--images 450] [--connections 8]

Exit code 0: at least 95 % of the images were recognised, and after Ctrl-C nothing of the instance was left.
The figures include the client, which shares the machine's cores with the models.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import httpx

from examples.digits import images
from examples.running import RunError, running

ACCURACY_MIN: Final = 0.95
REQUEST_MAX_S: Final = 30.0
WARM_UP: Final = 4  # requests that are not measured: each replica's first call loads code


@dataclass(frozen=True)
class Sample:
    """One image on its way: what it shows, what was answered, how long that took."""

    expected: int
    label: int
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What a run amounts to."""

    accuracy: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def percentile(values: list[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all values do not exceed."""
    return sorted(values)[max(math.ceil(fraction * len(values)) - 1, 0)]


def figures(samples: list[Sample], elapsed_s: float) -> Figures:
    seconds = [sample.seconds for sample in samples]
    return Figures(
        accuracy=sum(sample.expected == sample.label for sample in samples) / len(samples),
        requests_per_s=len(samples) / elapsed_s,
        p50_ms=percentile(seconds, 0.50) * 1000,
        p99_ms=percentile(seconds, 0.99) * 1000,
    )


Work = tuple[bytes, int]  # a PNG and the digit it shows


async def post(client: httpx.AsyncClient, png: bytes, expected: int) -> Sample:
    started = time.perf_counter()
    response = await client.post("/predict", files={"image": ("digit.png", png, "image/png")})
    if response.status_code != 200:
        raise RunError(f"POST /predict answered {response.status_code}: {response.text[:500]}")
    return Sample(expected, response.json()["label"], time.perf_counter() - started)


async def post_all(url: str, work: list[Work], connections: int) -> tuple[list[Sample], float]:
    """Posts everything, at most ``connections`` at a time; returns the samples and the seconds it took."""
    limits = httpx.Limits(max_connections=connections)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=REQUEST_MAX_S, trust_env=False) as client:
        for png, expected in work[:WARM_UP]:
            await post(client, png, expected)

        async def one_connection(queue: Iterator[Work]) -> list[Sample]:
            return [await post(client, png, expected) for png, expected in queue]

        queue = iter(work)  # shared: whoever is free takes the next one
        started = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one_connection(queue)) for _ in range(connections)]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the first one tells the story
        elapsed = time.perf_counter() - started
    return [sample for task in tasks for sample in task.result()], elapsed


def report(found: Figures, count: int, connections: int) -> str:
    return (
        f"\n{count} held-out images over {connections} connections\n"
        f"  accuracy    {found.accuracy:8.4f}   (at least {ACCURACY_MIN})\n"
        f"  requests/s  {found.requests_per_s:8.1f}\n"
        f"  p50         {found.p50_ms:8.1f} ms\n"
        f"  p99         {found.p99_ms:8.1f} ms\n"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.digits.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=450, help="how many of the 450 held-out images to post")
    parser.add_argument("--connections", type=int, default=8, help="how many at a time")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.connections < 1:
        parser.error("--images and --connections take a number from 1 on")

    digits = images.load()
    shown = zip(digits.held_out, digits.held_out_labels, strict=True)
    work = [(images.to_png(pixels), int(label)) for pixels, label in shown][: options.images]
    try:
        with running("examples.digits.app:app") as instance:
            print(f"\nready at {instance.url}, posting {len(work)} images", flush=True)
            samples, elapsed = asyncio.run(post_all(instance.url, work, options.connections))
            found = figures(samples, elapsed)
            print(report(found, len(samples), options.connections), flush=True)
    except (RunError, httpx.HTTPError) as error:
        print(f"demo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if found.accuracy < ACCURACY_MIN:
        print(f"demo: accuracy {found.accuracy:.4f} is below {ACCURACY_MIN}", file=sys.stderr)
        return 1
    print("stopped with Ctrl-C; no process, listener or file is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
