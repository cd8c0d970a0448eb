"""From outputs and targets to what is minimised, and the mean of a batch's parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distbelief.errors import ConfigError
from distbelief.models.googlenet import Logits
from distbelief.replica.criterion import Criterion, Mean

CPU = torch.device("cpu")
LABELS = np.array([0, 2, 1, 2])


def logits(seed: int = 0, n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator).requires_grad_()


def test_the_loss_is_the_cross_entropy() -> None:
    outputs = logits()
    found = Criterion(0.3)(outputs, LABELS, CPU)
    assert found.keys() == {"loss"}
    assert torch.equal(found["loss"], functional.cross_entropy(outputs, torch.from_numpy(LABELS)))
    assert found["loss"].requires_grad


def test_auxiliary_losses_have_their_weight() -> None:
    outputs = Logits(logits(0), logits(1), logits(2))
    found = Criterion(0.5)(outputs, LABELS, CPU)
    assert found.keys() == {"loss", "main", "aux1", "aux2"}
    total = found["main"] + 0.5 * (found["aux1"] + found["aux2"])
    torch.testing.assert_close(found["loss"], total, rtol=1e-6, atol=0.0)


def test_a_loss_of_ones_own_gets_what_the_network_returned() -> None:
    outputs = {"anything": logits()}

    def own(given: Any, targets: Tensor) -> dict[str, Tensor]:
        assert given is outputs
        assert targets.tolist() == LABELS.tolist()
        loss = given["anything"].square().mean()
        return {"loss": loss, "other": loss.detach() + 1}

    found = Criterion(0.3, own)(outputs, LABELS, CPU)
    assert found.keys() == {"loss", "other"}


def test_a_tensor_is_the_loss() -> None:
    found = Criterion(0.3, lambda outputs, targets: outputs.sum())(logits(), LABELS, CPU)
    assert found.keys() == {"loss"}


def test_targets_may_be_more_than_labels() -> None:
    targets = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    found = Criterion(0.3, functional.mse_loss)(logits(), targets, CPU)
    expected = functional.mse_loss(logits(), torch.from_numpy(targets))
    assert torch.equal(found["loss"], expected)


@pytest.mark.parametrize(
    ("outputs", "labels", "field", "problem"),
    [
        (
            logits().sum(1),
            LABELS,
            "model",
            "returns (4,) for 4 examples; (4, classes) is wanted",
        ),
        (
            logits(n=3),
            LABELS,
            "model",
            "returns (3, 3) for 4 examples; (4, classes) is wanted",
        ),
        (
            logits().detach(),
            LABELS,
            "model",
            "returns logits without a gradient: nothing could be learned",
        ),
        (
            logits(),
            np.array([0, 1, 2, 3]),
            "classes",
            "a label is 3, the network has 3 outputs, for labels 0 to 2: mend the data set, or "
            "give more classes",
        ),
        (
            logits(),
            np.array([0, -1, 2, 2]),
            "classes",
            "a label is -1, the network has 3 outputs, for labels 0 to 2: mend the data set, or "
            "give more classes",
        ),
    ],
)
def test_what_does_not_go_together_is_told(
    outputs: Any, labels: Any, field: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Criterion(0.3)(outputs, labels, CPU)
    assert (caught.value.field, caught.value.problem) == (field, problem)


# The mean of parts


def test_parts_are_weighed_by_their_examples() -> None:
    mean = Mean({})
    mean.add({"loss": torch.tensor(1.0), "main": torch.tensor(8.0)}, 0.75)
    mean.add({"loss": torch.tensor(5.0), "main": torch.tensor(0.0)}, 0.25)
    assert {name: float(value) for name, value in mean.sums.items()} == {"loss": 2.0, "main": 6.0}


def test_a_whole_batch_is_kept_to_the_last_bit_and_without_its_gradient() -> None:
    loss = logits().exp().mean()
    mean = Mean({})
    mean.add({"loss": loss}, 1.0)
    assert torch.equal(mean.sums["loss"], loss)
    assert not mean.sums["loss"].requires_grad


def test_the_mean_of_parts_is_the_loss_of_the_whole() -> None:
    outputs, mean = logits().double(), Mean({})
    criterion = Criterion(0.3, functional.cross_entropy)
    for rows in (slice(0, 3), slice(3, 4)):
        part = criterion(outputs[rows], LABELS[rows], CPU)
        mean.add(part, len(LABELS[rows]) / 4)
    whole = criterion(outputs, LABELS, CPU)
    assert float(mean.sums["loss"]) == pytest.approx(whole["loss"].item(), rel=1e-14)
