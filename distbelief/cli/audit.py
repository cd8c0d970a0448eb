"""``distbelief audit RUN``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice

import tyro

from distbelief.audit import Audit, ItemAside, audit
from distbelief.cli.options import parsed

SHOWN = 10
"""So many items that were set aside are printed, and so many of the names of each."""


def main(arguments: Sequence[str]) -> int:
    """Audits a run; 0 if it is clean, 1 with the first counter-example if not."""

    def read(run: tyro.conf.Positional[str], json: bool = False) -> tuple[str, bool]:
        """Proves from a run's push logs that every example was applied exactly once.

        Args:
            run: The run's folder, a path or any fsspec URL.
            json: Print the figures as JSON.
        """
        return run, json

    run_dir, as_json = parsed(read, arguments, "audit")
    result = audit(run_dir)
    if as_json:
        found = None if result.clean else str(result.counter_example)
        print(json.dumps({**asdict(result), "counter_example": found, "clean": result.clean}))
    else:
        print(*_lines(result), sep="\n")
    return 0 if result.clean else 1


def _lines(result: Audit) -> Iterator[str]:
    yield _sentence(result)
    for one in result.redone:
        yield f"  done again: {one}"
    for item in result.aside[:SHOWN]:
        yield f"  set aside: {_item(item)}"
    if (more := len(result.aside) - SHOWN) > 0:
        yield f"  and {more:,} more"


def _sentence(result: Audit) -> str:
    if not result.clean:
        return f"not clean: {result.counter_example}"
    parts = [
        f"clean: {result.epochs_finished} whole epochs; {result.items:,} items, "
        f"{result.examples:,} examples, each applied once on every one of {result.n_shards} shards"
    ]
    if result.twins:
        parts.append(f"{result.twins} twins have done the same")
    if result.skipped:
        parts.append(f"{result.skipped:,} unreadable examples skipped")
    if result.forgotten:
        parts.append(f"{result.forgotten:,} pushes after a snapshot were forgotten and done again")
    if result.set_aside:
        parts.append(f"{result.set_aside:,} items set aside")
    return "; ".join(parts)


def _item(item: ItemAside) -> str:
    names = ", ".join(islice(item.files, SHOWN))
    more = len(item.files) - SHOWN
    rest = f" and {more:,} more" if more > 0 else ""
    return f"item {item.item}: {item.reason}" + (f" ({names}{rest})" if names else "")
