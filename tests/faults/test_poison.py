"""Examples that spoil a gradient or end a replica, and a replica that spoils whatever it gets."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from distbelief.faults.points import InjectedError

N, BAD = 128, 17
LAST_CLASS = 9


def require_named(event: dict[str, Any], vectors: Any) -> None:
    """The files that an event names are the four of one item, the bad one among them."""
    name = f"{vectors.__module__}.{vectors.__qualname__} (train)"
    assert len(event["files"]) == 4
    assert f"{name}[{BAD}]" in event["files"]
    assert all(file.startswith(name) for file in event["files"])


@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_a_batch_that_is_not_finite_is_set_aside_with_its_files(
    small: Any, vectors: Any, transport: str
) -> None:
    ended = small.run(
        dataset=vectors(N, not_finite=[BAD]), changes={"epochs": 1}, transport=transport
    )
    ended.require_all(N, set_aside=4)
    (aside,) = ended.told("set_aside")
    assert aside["reason"] == "not_finite, 3 times"
    require_named(aside, vectors)
    refused = ended.told("refused")
    assert [(e["item"], e["reason"]) for e in refused] == 3 * [(aside["item"], "not_finite")]
    assert all(sorted(e["culprits"]) == sorted(aside["files"]) for e in refused)
    assert torch.isfinite(ended.values).all()
    assert [(a.item, a.files) for a in ended.audit.aside] == [
        (aside["item"], tuple(aside["files"]))
    ]
    # Neither replica is to blame.
    assert not ended.told("replica_dismissed")
    assert ended.result["recoveries"] == []


def test_a_replica_that_spoils_all_it_gets_is_replaced(small: Any, hold: Any) -> None:
    def spoil(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        wrong = threading.current_thread().name == "replica-0"
        return losses * float("nan") if wrong else losses

    ended = small.run(
        spoil=spoil,
        holds=[
            hold(lambda run: run.told("replica_lost", replica=0), after=2, who="replica-1"),
            hold(lambda run: run.told("replica_replaced"), after=40, who="replica-1"),
        ],
    )
    ended.require_all(small.n_examples)
    cause = "3 gradients in a row were refused (not_finite)"
    (dismissed,) = ended.told("replica_dismissed")
    assert (dismissed["replica"], dismissed["cause"]) == (0, cause)
    (lost,) = ended.told("replica_lost")
    assert lost["replica"] == 0
    assert lost["cause"].endswith(cause)
    (replaced,) = ended.told("replica_replaced")
    assert replaced["replica"] == 2
    refused = ended.told("refused")
    assert len(refused) >= 3
    assert {e["replica"] for e in refused} == {0}
    assert not ended.told("set_aside")
    (recovery,) = ended.result["recoveries"]
    assert (recovery["what"], recovery["cause"]) == ("replica 0", lost["cause"])
    assert torch.isfinite(ended.values).all()


def test_an_item_whose_replica_dies_again_and_again_is_set_aside(small: Any, vectors: Any) -> None:
    def spoil(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if (labels == LAST_CLASS).any():
            raise InjectedError("its loss")
        return losses

    data = vectors(N, of_last_class=[BAD])
    ended = small.run(dataset=data, spoil=spoil, changes={"epochs": 1})
    ended.require_all(N, set_aside=4)
    (aside,) = ended.told("set_aside")
    assert aside["reason"] == "its replica died 3 times"
    require_named(aside, vectors)
    lost = ended.told("replica_lost")
    assert len(lost) == 3
    # All of them were at it; the last one held nothing else, so that nothing else is suspected.
    assert all(aside["item"] in e["items_returned"] for e in lost[:2])
    assert lost[2]["items_returned"] == []
    recoveries = ended.result["recoveries"]
    assert [r["cause"] for r in recoveries] == 3 * ["it died at its loss"]
    assert [(a.item, a.reason) for a in ended.audit.aside] == [(aside["item"], aside["reason"])]
