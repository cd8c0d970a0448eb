"""How a run stands, seen from outside."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from distbelief.errors import DataError
from distbelief.runtime.claim import claimed
from distbelief.runtime.standing import DIED_S, standing_of
from distbelief.storage import LocalStorage

END = {"t": 1.0, "kind": "end", "status": "finished"}
FAILURE = {"t": 1.0, "kind": "failure", "cause": "no room"}
PLAN = {"n_examples": 100, "batch_size": 10, "n_push": 1, "n_items": 30}


@pytest.mark.parametrize(
    ("event", "is_held", "age_s", "expected"),
    [
        (None, True, 0.0, "running"),
        (None, True, 10 * DIED_S, "running"),  # it may hang, but its process is there
        (None, False, 0.0, "running"),  # locks that this host does not see, or it ends just now
        (None, False, 10 * DIED_S, "died"),
        (END, True, 0.0, "running"),  # it still has the folder, or it is being resumed
        (END, False, 0.0, "finished"),
        (FAILURE, False, 10 * DIED_S, "failed"),
    ],
)
def test_how_it_stands(
    event: dict[str, object] | None, is_held: bool, age_s: float, expected: str, tmp_path: Path
) -> None:
    record = {"config": {"recipe": "tiny"}, "plan": PLAN, "started_at": 1000.0}
    (tmp_path / "config.json").write_text(json.dumps(record))
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n" if event else "")
    written_at = time.time() - age_s
    for file in tmp_path.iterdir():
        os.utime(file, (written_at, written_at))
    storage = LocalStorage(tmp_path)
    with ExitStack() as stack:
        if is_held:
            stack.enter_context(claimed(storage))
        standing = standing_of(storage)
    assert standing.word == expected
    assert standing.summary == {"status": expected, "run_dir": str(tmp_path)}


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no run's folder"):
        standing_of(LocalStorage(tmp_path / "nothing"))
