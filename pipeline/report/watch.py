"""``status --watch``: a run as it goes on, from its store and its log alone."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.console import console
from pipeline.dataset import Root
from pipeline.journal import read
from pipeline.progress import clock
from workers.lease import holder
from workers.store import Store

EVERY = 2.0
"""Seconds between looks."""
RECENT = 200
"""Events from which the rate is taken."""
SHOWN = 6
ENDS = {"end", "stopped", "interrupted"}


def watch(root: Root) -> None:
    """Show progress until no driver is at work; Ctrl-C leaves the run alone."""
    store = Store(root)
    store.record()
    with Live(view(store), console=console, auto_refresh=False) as live:
        try:
            while holder(store.objects) is not None:
                time.sleep(EVERY)
                live.update(view(store), refresh=True)
        except KeyboardInterrupt:
            console.print("stopped watching; the run goes on")


def view(store: Store) -> Group:
    """What is known now: shards done, rate, time left, the driver, the last events."""
    events = read(store.objects, RECENT)
    shards = store.shards
    table = Table("stage", "shards", "", "examples/s", "left", title=store.root)
    for stage in ("explain", "evaluate"):
        done = store.finished(stage)
        per_second, left = _rate(events, stage, shards - done)
        table.add_row(stage, f"{done:,} / {shards:,}", _bar(done, shards), per_second, left)
    at_work = holder(store.objects)
    who = f"being written by {at_work}" if at_work else "no driver is at work"
    return Group(table, Text(who), *map(_line, events[-SHOWN:]))


def _rate(events: Sequence[dict[str, Any]], stage: str, shards_left: int) -> tuple[str, str]:
    """Examples a second and time left, over the last shards of the present driver."""
    begin = max((i for i, e in enumerate(events) if e["event"] == "start"), default=0)
    own = [e for e in events[begin:] if e["event"] == "shard" and e["stage"] == stage]
    if len(own) < 2 or any(e["event"] in ENDS for e in events[begin:]):
        return "", ""
    seconds = max(1e-9, own[-1]["time"] - own[0]["time"])
    rate = sum(e["examples"] for e in own[1:]) / seconds
    return f"{rate:.1f}", clock(shards_left * seconds / (len(own) - 1))


def _bar(done: int, total: int, width: int = 24) -> str:
    full = round(width * done / max(1, total))
    return "█" * full + "░" * (width - full)


def _line(event: dict[str, Any]) -> Text:
    when = datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S")
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("time", "event"))
    return Text(f"{when} {event['event']}: {rest}", overflow="ellipsis", no_wrap=True)
