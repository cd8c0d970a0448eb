"""A minute of chaos: processes of a real run are killed and stopped, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from distbelief.chaos.run import Plan, run_chaos


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute(tmp_path: Path) -> None:
    options = {"replicas": 2, "shards": 2, "shard_replication": 2, "address": "local"}
    plan = Plan(seconds=60.0, seed=6, every_s=10.0, options=options)
    said: list[str] = []
    result = run_chaos(plan, tmp_path / "run", said.append)
    assert result.findings.problems == [], said
    assert len(result.findings.outcomes) == len(plan.actions) == 4
    assert any(o.seconds is not None for o in result.findings.outcomes), "nothing was lost"
    assert result.findings.audit.examples > 0
    assert result.summary["status"] == "interrupted"
