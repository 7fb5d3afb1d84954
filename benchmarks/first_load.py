"""The cost of the first load of / in a browser: python -m benchmarks.first_load

Bytes over the wire, requests, first and largest paint, layout shift and total blocking time, measured in a real
Chromium: with an empty cache at full speed, with an empty cache and a CPU four times slower, and with a full cache.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

from benchmarks import machine
from tests.browser.photo_page import QUEUE
from tests.chromium import Page, browsing
from tests.factories import make_token
from tests.service import AiService, Service

RUNS = 5
GOAL_BYTES = 60 * 1024
# A task that runs longer than this blocks the page.
BLOCKING_MS = 50
QUIET_SECONDS = 1.0
# Runs before the page's own code.
OBSERVERS = """globalThis.seen = { paint: 0, largest: 0, shift: 0, blocking: 0 };
const watch = (type, add) =>
  new PerformanceObserver((list) => list.getEntries().forEach(add)).observe({ type, buffered: true });
watch("paint", ({ name, startTime }) => name === "first-contentful-paint" && (seen.paint = startTime));
watch("largest-contentful-paint", ({ startTime }) => (seen.largest = startTime));
watch("layout-shift", ({ value, hadRecentInput }) => hadRecentInput || (seen.shift += value));
watch("longtask", ({ duration }) => (seen.blocking += Math.max(0, duration - BLOCKING_MS)));"""
FIGURES = """(() => {
  const all = ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type));
  return { ...seen, size: all.reduce((sum, { transferSize }) => sum + transferSize, 0),
    bodies: all.reduce((sum, each) => sum + (each.transferSize && each.encodedBodySize), 0), requests: all.length,
    foreign: all.filter(({ name }) => new URL(name).origin !== location.origin).length };
})()"""
COLUMNS = ("", "KB", "with headers", "requests", "foreign", "first paint", "largest paint", "layout shift", "blocking")


async def measure(page: Page, url: str, slowdown: int, *, is_cached: bool) -> dict[str, float]:
    """Load the page, wait until it is quiet, and return the figures: times in milliseconds, sizes in bytes."""
    await page.call("Page.navigate", url="about:blank")
    if not is_cached:
        await page.call("Network.clearBrowserCache")
    await page.call("Emulation.setCPUThrottlingRate", rate=slowdown)
    await page.call("Page.navigate", url=url)
    await page.until(f"{QUEUE}.querySelector('[data-view=empty] .option')")
    await asyncio.sleep(QUIET_SECONDS * slowdown)
    figures: dict[str, float] = await page.evaluate(FIGURES)
    return figures


async def measured(url: str) -> dict[str, dict[str, float]]:
    """Return the medians of RUNS loads of each kind."""
    kinds = {"first load": (1, False), "first load, CPU 4x slower": (4, False), "again": (1, True)}
    medians: dict[str, dict[str, float]] = {}
    async with browsing("about:blank") as page:
        await page.call("Network.enable")
        script = OBSERVERS.replace("BLOCKING_MS", str(BLOCKING_MS))
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        for kind, (slowdown, is_cached) in kinds.items():
            loads = [await measure(page, url, slowdown, is_cached=is_cached) for _ in range(RUNS)]
            medians[kind] = {name: statistics.median(load[name] for load in loads) for name in loads[0]}
        assert page.problems == [], page.problems
    return medians


def row(kind: str, load: dict[str, float]) -> tuple[str, ...]:
    """Return a line of the table."""
    paints = (f"{load[name]:.0f} ms" for name in ("paint", "largest"))
    counts = (f"{load[name]:.0f}" for name in ("requests", "foreign"))
    sizes = (f"{load[name] / 1024:.1f}" for name in ("bodies", "size"))
    return (kind, *sizes, *counts, *paints, f"{load['shift']:.3f}", f"{load['blocking']:.0f} ms")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, AiService() as ai_service:
        with Service(Path(folder), ai_service.url) as service:
            medians = asyncio.run(measured(f"{service.url}/#token={make_token('ann')}"))
    print(machine.describe())
    for line in (COLUMNS, ("---",) * len(COLUMNS), *(row(*each) for each in medians.items())):
        print(f"| {' | '.join(line)} |")
    first = medians["first load"]
    is_met = first["size"] < GOAL_BYTES and not first["foreign"]
    print(f"Goal: under {GOAL_BYTES // 1024} KB with headers, no other origin: {'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
