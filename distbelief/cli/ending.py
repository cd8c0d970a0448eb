"""What a command says of a run that has ended, and its exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distbelief.cli import INTERRUPTED
from distbelief.errors import RunError
from distbelief.runtime.standing import Standing

CODES = {"finished": 0, "interrupted": INTERRUPTED}


def closing(result: Mapping[str, Any]) -> str:
    """The last lines of a run that finished or was interrupted.

    Args:
        result: Contents of its ``summary.json``, and ``run_dir``.
    """
    lines = [
        f"{result['status']}: {result['examples_applied']:,} images in "
        f"{result['wall_seconds']:.0f} s "
        f"({result['images_per_second']:,.0f} a second while training)"
    ]
    if found := result.get("validation"):
        accuracy = (
            f"top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}"
            if "top1" in found
            else f"loss {found['loss']:.4f}"
        )
        lines.append(f"averaged weights: {accuracy} of {found['n_examples']:,} validation examples")
    if result["status"] == "interrupted" and (snapshot := result.get("snapshot")):
        if "failed" in snapshot:
            lines.append(f"the last snapshot FAILED: {snapshot['failed']}")
        if "number" in snapshot:
            lines.append(
                f"go on from {snapshot['examples_applied']:,} images with: "
                f"distbelief train --resume {result['run_dir']}"
            )
    lines.append(f"weights and record: {result['run_dir']}")
    return "\n".join(lines)


def told(standing: Standing) -> int:
    """Prints how a run has ended; the exit code that ``train`` has given, or would have.

    Raises:
        RunError: it failed, or its process has died.
    """
    url = standing.record.url
    if standing.word == "died":
        raise RunError(
            f"{url}: the process that trained has died without a word; go on with: "
            f"distbelief train --resume {url}"
        )
    if standing.word == "failed":
        raise RunError(standing.record.end[1] or f"{url}: the run failed")
    if standing.record.summary is None:
        print(f"{standing.word}: {url}", flush=True)
    else:
        print(closing(standing.summary), flush=True)
    return CODES[standing.word]
