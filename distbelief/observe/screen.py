"""How a run is drawn on a terminal, from a report: by the live view and by ``status --watch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distbelief.observe.report import Report, duration, staleness_summary

MOST_REPLICAS, MOST_SHARDS = 12, 8
NARROW = 72
"""Below so many columns some figures are left out."""

BESIDE_HOST = 66
"""Columns that the other figures of a replica take."""

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", ".:-=+*%#"
STYLES = {
    "running": "cyan",
    "finished": "green",
    "interrupted": "yellow",
    "failed": "red",
    "working": "green",
    "silent": "yellow",
    "leaving": "blue",
}


def bars(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """One block for each value, as high as its share of the largest; only 0 has none.

    Example:
        >>> bars([0, 1, 8])
        ' ▁█'
    """
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    top = max(values, default=0.0)
    if top <= 0:
        return " " * len(values)
    return "".join(
        blocks[max(0, round(value / top * len(blocks)) - 1)] if value > 0 else " "
        for value in values
    )


def binned(counts: Mapping[int, int], most: int) -> list[int]:
    """A histogram from 0 to its largest value, in no more than ``most`` bins of equal width."""
    size = max(counts, default=-1) + 1
    width = max(1, -(-size // most))
    found = [0] * -(-size // width)
    for value, n in counts.items():
        found[value // width] += n
    return found


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A renderable of rich that fits the terminal, whatever its size is.

    Attributes:
        report: How the run stands.
        recipe: Its recipe.
        status: running, finished, interrupted or failed.
        note: What else there is to say of the status, or nothing.
        history: Images a second so far, in order.
    """

    report: Report
    recipe: str
    status: str = "running"
    note: str = ""
    history: Sequence[float] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        lines = self._lines(width, options.ascii_only)
        # Something may be printed above, and the cursor stays below.
        room = (options.height or console.size.height) - len(lines) - 2
        n_replicas, n_shards = len(self.report.replicas), len(self.report.shards)
        for_shards = min(n_shards, MOST_SHARDS, max(1, (room - 3) // 3)) if room > 6 else 0
        room -= for_shards + 2 if for_shards else 0
        for_replicas = max(0, min(n_replicas, MOST_REPLICAS, room - 3))
        if for_replicas and n_replicas:
            lines += [Text(""), _replicas(self._members(), for_replicas, width)]
        if for_shards and n_shards:
            lines += [Text(""), _shards(self.report.shards, for_shards, width)]
        yield Group(*lines)

    def _lines(self, width: int, ascii_only: bool) -> list[RenderableType]:
        r = self.report
        lines = [self._head(), _short(r.run_dir, width), self._bar(width)]
        lines += [self._pace(width, ascii_only), self._learning()]
        lines += [self._product(), self._staleness(width, ascii_only)]
        if self.note or r.failure:
            lines.append(Text(self.note or r.failure, style=STYLES.get(self.status, "")))
        for line in lines:
            if isinstance(line, Text):
                # Each takes one row, which the tables below count on.
                line.no_wrap, line.overflow = True, "ellipsis"
        return lines

    def _members(self) -> list[dict[str, Any]]:
        if self.status == "running":
            return list(self.report.replicas)
        return [{**m, "state": "ended"} for m in self.report.replicas]

    def _head(self) -> RenderableType:
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right", no_wrap=True)
        left = Text.assemble(("distbelief ", "bold"), (self.recipe, "bold cyan"))
        status = Text(self.status, style=f"bold {STYLES.get(self.status, '')}")
        status.append(f"  {duration(self.report.elapsed_s)}", style="default")
        head.add_row(left, status)
        return head

    def _bar(self, width: int) -> RenderableType:
        r = self.report
        done = r.examples_applied + r.examples_set_aside
        share = done / r.total_examples if r.total_examples else 0.0
        text = f"{int(share * 100):3d}%  {r.examples_applied:,} of {r.total_examples:,} images"
        if self.status == "running":
            text += f"  left {duration(r.left_s)}" if r.left_s is not None else "  left ?"
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        room = max(4, width - len(text) - 2)
        bar = ProgressBar(total=max(1, r.total_examples), completed=done, width=room)
        row.add_row(bar, Text(text))
        return row

    def _pace(self, width: int, ascii_only: bool) -> Text:
        r = self.report
        text = Text("images/s   ")
        if self.status == "running":
            text.append(f"{r.images_per_second:,.0f}", style="bold").append("  mean ")
        text.append(f"{r.mean_images_per_second:,.0f}")
        if r.mean_waiting > 0.005:
            text.append(f"  waiting for data {r.mean_waiting:.0%}")
        room = min(60, width - len(text) - 4)
        if room > 4 and self.history:
            text.append("  ")
            text.append(bars(self.history[-room:], ascii_only=ascii_only), style="cyan")
        return text

    def _learning(self) -> Text:
        r = self.report
        text = Text("loss       ")
        text.append(f"{r.losses['loss']:.4f}" if "loss" in r.losses else "?", style="bold")
        text.append(f"  rate {r.learning_rate:.4g}  epoch {r.epoch}/{r.n_epochs}")
        others = [f"{name} {value:.3f}" for name, value in r.losses.items() if name != "loss"]
        if others:
            text.append(f"  ({', '.join(others)})", style="dim")
        return text

    def _product(self) -> Text:
        r = self.report
        text = Text("averaged   ")
        if r.validation:
            # A loss of one's own has no classes to be right about.
            names = {"top1": "top-1", "top5": "top-5"}
            shown = {names[n]: f"{r.validation[n]:.2%}" for n in names if n in r.validation}
            shown = shown or {"loss": f"{r.validation.get('loss', 0.0):.4f}"}
            figures = "  ".join(f"{name} {value}" for name, value in shown.items())
            text.append(figures, style="bold green")
            if r.validation.get("epoch"):
                text.append(f"  after epoch {r.validation['epoch']}")
        else:
            text.append("not evaluated yet", style="dim")
        if r.snapshot:
            ago = max(0.0, r.elapsed_s - r.snapshot["t"])
            text.append(f"  snapshot {r.snapshot['number']}, {duration(ago)} ago")
        return text

    def _staleness(self, width: int, ascii_only: bool) -> Text:
        r = self.report
        s = staleness_summary(r.staleness)
        text = Text("staleness  ")
        if r.staleness:
            end = f" {s['max']}  mean {s['mean']:.2f}  p99 {s['p99']}"
            end += f"  refused {sum(r.refused.values())}" if r.refused else ""
            room = max(1, min(40, width - len(text) - len(end) - 2))
            text.append("0 ")
            text.append(bars(binned(r.staleness, room), ascii_only=ascii_only), style="magenta")
            text.append(end)
        else:
            text.append("no push yet", style="dim")
        return text


def _short(url: str, width: int) -> Text:
    """The end of a long path tells more than its beginning."""
    return Text(url if len(url) <= width else "…" + url[1 - width :], style="dim", no_wrap=True)


def _table(columns: Sequence[tuple[str, bool]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, is_text in columns:
        table.add_column(
            name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis"
        )
    return table


def _replicas(replicas: Sequence[dict[str, Any]], most: int, width: int) -> Table:
    wide = width >= NARROW
    names = [("replica", True), ("state", True), *([("host", True)] if wide else [])]
    names += [("images/s", False), ("items", False), ("weights' age", False)]
    names += [("waited", False)] if wide else []
    table = _table(names)

    def add(first: str, state: Text, host: str, some: Sequence[dict[str, Any]]) -> None:
        pace = [m["images_per_second"] for m in some if m.get("images_per_second")]
        ages = [m["parameters_age_s"] for m in some if m.get("parameters_age_s") is not None]
        waits = [m["waiting"] for m in some if m.get("waiting") is not None]
        figures = [
            f"{sum(pace):,.1f}" if pace else "-",
            f"{sum(m.get('items', 0) for m in some):,}",
            f"{sum(ages) / len(ages):.2f} s" if ages else "-",
        ]
        waited = f"{sum(waits) / len(waits):.0%}" if waits else "-"
        table.add_row(
            first, state, *([host] if wide else []), *figures, *([waited] if wide else [])
        )

    shown = replicas if len(replicas) <= most else replicas[: most - 1]
    for m in shown:
        state = str(m.get("state", ""))
        host = _host(str(m.get("host", "")), width - BESIDE_HOST)
        stages = m.get("stages", 1)
        name = f"{m['replica']}, {stages} stages" if stages > 1 else str(m["replica"])
        add(name, Text(state, style=STYLES.get(state, "")), host, [m])
    if rest := replicas[len(shown) :]:
        n = sum(m.get("state") == "working" for m in rest)
        add(f"and {len(rest)} more", Text(f"{n} working" if n else ""), "", rest)
    return table


def _host(name: str, room: int) -> str:
    if len(name) > room:
        name = name.partition(".")[0] if not name[:1].isdigit() else name
    return name if len(name) <= room else name[: room - 1] + "…"


def _shards(shards: Sequence[dict[str, Any]], most: int, width: int) -> Table:
    names = ["clock", "queued", "MB/s", "applied", "refused", "repeated"]
    table = _table([("shard", True), *((name, False) for name in names)])

    def add(first: str, clock: str, some: Sequence[dict[str, Any]]) -> None:
        sums = {
            name: sum(s.get(name, 0) for s in some)
            for name in ("queued", "applied", "refused", "repeated")
        }
        table.add_row(
            first,
            clock,
            str(sums["queued"]),
            f"{sum(s.get('mb_per_second', 0.0) for s in some):,.1f}",
            *(f"{sums[name]:,}" for name in ("applied", "refused", "repeated")),
        )

    shown = shards if len(shards) <= most else shards[: most - 1]
    for s in shown:
        started = s.get("incarnation", 1)
        name = str(s["shard"]) + (f", start {started}" if started > 1 else "")
        add(name, f"{s['clock']:,}", [s])
    if rest := shards[len(shown) :]:
        low, high = min(s["clock"] for s in rest), max(s["clock"] for s in rest)
        clock = f"{low:,}" if low == high else f"{low:,}-{high:,}"
        add(f"and {len(rest)} more", clock, rest)
    return table
