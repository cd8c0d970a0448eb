"""The cluster file passes Ray's own check, and what that check lets pass is as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[3] / "cluster" / "config.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_rays_check_would_notice(config: dict[str, Any]) -> None:
    config["head_node_typ"] = config.pop("head_node_type")
    with pytest.raises(Exception, match="head_node_typ"):
        validate_config(prepare_config(config))


def test_numbers_fit(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    workers = [t for name, t in types.items() if name != config["head_node_type"]]
    assert all(t["min_workers"] <= t["max_workers"] for t in workers)
    assert sum(t["max_workers"] for t in workers) <= config["max_workers"]


def test_shards_on_demand_and_replicas_on_spot(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types["shard"]["resources"]["shard"] >= 1
    assert types["replica"]["resources"]["replica"] >= 1
    assert "InstanceMarketOptions" not in types["shard"]["node_config"]
    assert types["replica"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_every_node_wants_the_token_and_the_dashboard_is_private(config: dict[str, Any]) -> None:
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for commands in (head, workers):
        assert all("RAY_AUTH_MODE=token" in c for c in commands if "ray start" in c)
    assert any("--dashboard-host=127.0.0.1" in c for c in head)
    assert any("chmod 600 ~/.ray/auth_token" in c for c in config["setup_commands"])
