"""The heartbeats of a run at full load do not cry wolf."""

from __future__ import annotations

from pathlib import Path

import pytest

from distbelief.bench.heartbeats import measure_heartbeats


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_alarm_where_nothing_is_done(tmp_path: Path) -> None:
    said: list[str] = []
    found = measure_heartbeats(20.0, tmp_path / "run", burn=4, say=said.append)
    assert found.alarms == []
    assert found.examples > 0
    assert found.seconds >= 20.0
    assert len(said) == 1
