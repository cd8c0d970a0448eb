"""What a plan says of itself: plain values, and a table of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distbelief.planner.costs import in_mb


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage.

    Attributes:
        stage: Its position.
        first: Its first block.
        last: Its last one.
        device: The word for its device.
        parameters: Elements that it trains.
        bytes_sent: What leaves it in a step, forwards and backwards.
        memory_bytes: What it takes on its device.
        forward_seconds: Of a micro-batch; None if nothing was measured, as all that follows.
        backward_seconds: Likewise.
        share: Its part of all stages' compute.
        busy: The part of a step that it computes.
    """

    stage: int
    first: str
    last: str
    device: str
    parameters: int
    bytes_sent: int
    memory_bytes: int
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    share: float | None = None
    busy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Steps that were run, to stand beside the prediction.

    Attributes:
        step_seconds: Of the stages together.
        one_process_seconds: Of one process with the whole network.
        memory_bytes: Peak of each stage, above a process that has only imported torch.
        one_process_memory_bytes: Likewise of the one process.
    """

    step_seconds: float
    one_process_seconds: float | None = None
    memory_bytes: tuple[int, ...] = ()
    one_process_memory_bytes: int | None = None

    @property
    def speed_up(self) -> float | None:
        """How many times as fast the stages are."""
        alone = self.one_process_seconds
        return None if alone is None else alone / self.step_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a plan's stages are, and what is expected of them.

    Attributes:
        model: The network.
        batch_size: Examples of a step.
        micro_batches: Parts that it is computed in.
        micro_batch_size: Examples of each.
        pipeline: Their order.
        precision: Arithmetic.
        threads: Of each stage.
        chosen_by: ``time``, ``memory`` or ``hand``.
        stages: One report each.
        one_process_memory_bytes: What one process would take, with the whole batch at once.
        step_seconds: Of a step, predicted; None if nothing was measured, as all that follows.
        without_communication_seconds: Likewise, if what is sent arrived at once.
        busiest_seconds: What the busiest stage computes in a step: no step can be shorter.
        one_process_seconds: What one process takes, measured, if it was.
        notes: What the figures rest on.
        warnings: What speaks against the plan.
    """

    model: str
    batch_size: int
    micro_batches: int
    micro_batch_size: int
    pipeline: Literal["1f1b", "gpipe"]
    precision: Literal["fp32", "bf16"]
    threads: int
    chosen_by: Literal["time", "memory", "hand"]
    stages: tuple[StageReport, ...]
    one_process_memory_bytes: int
    step_seconds: float | None = None
    without_communication_seconds: float | None = None
    busiest_seconds: float | None = None
    one_process_seconds: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The blocks with which the second and later stages begin."""
        return tuple(stage.first for stage in self.stages[1:])

    @property
    def images_per_second(self) -> float | None:
        """Examples a second, predicted."""
        return None if self.step_seconds is None else self.batch_size / self.step_seconds

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as one process the stages are, predicted."""
        return _ratio(self.one_process_seconds, self.step_seconds)

    @property
    def speed_up_at_best(self) -> float | None:
        """The same if no stage ever waited."""
        return _ratio(self.one_process_seconds, self.busiest_seconds)

    def to_dict(self, measured: Measured | None = None) -> dict[str, Any]:
        """Everything as plain values, for JSON; times in seconds, sizes in bytes."""
        found = asdict(self) | {
            "boundaries": self.boundaries,
            "images_per_second": self.images_per_second,
            "speed_up": self.speed_up,
            "speed_up_at_best": self.speed_up_at_best,
        }
        if measured is not None:
            found["measured"] = asdict(measured) | {
                "images_per_second": self.batch_size / measured.step_seconds,
                "speed_up": measured.speed_up,
            }
        return found

    def text(self, measured: Measured | None = None) -> str:
        """A table of the stages, and what is expected of them, in lines."""
        lines = [
            f"{len(self.stages)} stages of {self.model}: batch {self.batch_size} in "
            f"{self.micro_batches} micro-batches of {self.micro_batch_size}, {self.pipeline}, "
            f"{self.precision}, {self.threads} thread{'s' * (self.threads > 1)} each, "
            + ("boundaries by hand" if self.chosen_by == "hand" else f"by {self.chosen_by}"),
            "",
            *_table(self.stages),
            "",
            f"boundaries   --boundaries {','.join(self.boundaries)}",
            *self._expected(),
        ]
        if measured is not None:
            lines += self._found(measured)
        if measured is not None and measured.speed_up is not None and measured.speed_up < 1:
            lines.append(f"WARNING: {len(self.stages)} stages were slower than one process")
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _expected(self) -> list[str]:
        largest = max(stage.memory_bytes for stage in self.stages)
        alone = self.one_process_memory_bytes
        lines = [
            f"memory       the largest stage {in_mb(largest)}, one process {in_mb(alone)}: "
            f"{largest / alone:.0%}, beside what a process takes itself"
        ]
        if self.step_seconds is None or self.busiest_seconds is None:
            return lines
        lines.append(f"predicted    {self._rate(self.step_seconds, self.speed_up)}")
        lines.append(
            f"at best      {self._rate(self.busiest_seconds, self.speed_up_at_best)}, if the "
            f"busiest stage never waited"
        )
        if self.one_process_seconds is not None:
            lines.append(f"one process  {self._rate(self.one_process_seconds)}")
        return lines

    def _found(self, measured: Measured) -> list[str]:
        lines = [f"measured     {self._rate(measured.step_seconds, measured.speed_up)}"]
        if self.step_seconds is not None:
            off = self.step_seconds / measured.step_seconds - 1
            lines[0] += f"; predicted {abs(off):.1%} too {'fast' if off < 0 else 'slow'}"
        if measured.one_process_seconds is not None:
            lines.append(f"             one process {self._rate(measured.one_process_seconds)}")
        if measured.memory_bytes:
            sizes = ", ".join(in_mb(size) for size in measured.memory_bytes)
            alone = measured.one_process_memory_bytes
            beside = "" if alone is None else f", one process {in_mb(alone)}"
            lines.append(f"             memory of the stages {sizes}{beside}")
        return lines

    def _rate(self, step_s: float, speed_up: float | None = None) -> str:
        against = "" if speed_up is None else f", {speed_up:.2f} x one process"
        return f"{_time(step_s)} a step, {self.batch_size / step_s:,.1f} images/s{against}"


def _table(stages: Sequence[StageReport]) -> list[str]:
    rows = [_row(stage) for stage in stages]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    left = ("device", "blocks")

    def line(cells: dict[str, str]) -> str:
        aligned = (
            cells[name].ljust(widths[name]) if name in left else cells[name].rjust(widths[name])
            for name in names
        )
        return "  ".join(aligned).rstrip()

    return [line({name: name for name in names}), *(line(row) for row in rows)]


def _row(stage: StageReport) -> dict[str, str]:
    last = "" if stage.first == stage.last else f" to {stage.last}"
    return {
        "stage": str(stage.stage),
        "device": stage.device,
        "blocks": f"{stage.first}{last}",
        "share": _percent(stage.share),
        "busy": _percent(stage.busy),
        "forward": _time(stage.forward_seconds),
        "backward": _time(stage.backward_seconds),
        "sent": in_mb(stage.bytes_sent),
        "parameters": f"{stage.parameters:,}",
        "memory": in_mb(stage.memory_bytes),
    }


def _ratio(whole: float | None, part: float | None) -> float | None:
    return whole / part if whole is not None and part else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
