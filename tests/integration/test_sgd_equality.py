"""One replica that waits for each exchange is plain SGD, through every layer and the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from distbelief.config import TrainConfig
from distbelief.data.dataset import open_data
from distbelief.data.loader import BatchLoader, BatchRequest
from distbelief.data.permutation import epoch_permutation
from distbelief.data.transforms import TrainTransform
from distbelief.models.dropout import seed_dropout
from distbelief.observe.view import Lines
from distbelief.replica.criterion import Criterion
from distbelief.replica.step import ImageInput, Step
from distbelief.runtime.beginning import begin
from distbelief.runtime.local import LocalWorld
from distbelief.runtime.prepare import prepare
from distbelief.runtime.signals import Stop
from distbelief.runtime.supervisor import Supervisor
from distbelief.runtime.task import Task

STEPS = 20


def trained(config: TrainConfig, transport: Literal["direct", "grpc"]) -> torch.Tensor:
    """The shards' newest parameters after the run."""
    prepared = prepare(config)
    begin(prepared)
    with LocalWorld(prepared, transport=transport, n_loaders=0) as world:
        result = Supervisor(world, prepared, Stop(), Lines(lambda line: None)).run()
        assert result["pushes"]["applied"] == STEPS * config.cluster.shards
        values = torch.empty(prepared.layout.size)
        for e in world.serving.shards:
            with world.shard_at(e) as shard:
                shard.fetch(values[e.begin : e.end], begin=e.begin)
    return values


def reference(config: TrainConfig) -> torch.Tensor:
    """A plain loop with torch.optim.SGD over the same batches."""
    dataset = open_data(config.data, config.seed)
    model = Task().build_model(config, dataset.n_outputs)
    device = torch.device("cpu")
    step = Step(model, ImageInput("unit", device, True), Criterion(0.3), device, "fp32")
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    lr = config.schedule.lr
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "weight_decay": config.optimizer.weight_decay},
            {"params": biases, "lr": lr * config.optimizer.bias_rate, "weight_decay": 0.0},
        ],
        lr=lr,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.rule == "nesterov",
        foreach=False,
    )
    n, size = dataset.train.n_examples, config.replica.batch_size
    batches = [
        BatchRequest(epoch, epoch_permutation(config.seed, epoch, n)[begin : begin + size])
        for epoch in range(2)
        for begin in range(0, n, size)
    ][:STEPS]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        transform = TrainTransform(config.data.image_size)
        with BatchLoader(dataset.train, transform, config.seed, 0) as loader:
            for item, request in enumerate(batches):
                batch = loader.submit(request).result()
                seed_dropout(model, config.seed, item, 0)
                optimizer.zero_grad()
                step(batch.images, batch.labels)
                optimizer.step()
    finally:
        torch.set_num_threads(before)
    # In the order of memory, as the flat vector has them.
    return torch.cat(
        [p.detach().permute(0, 2, 3, 1).reshape(-1) if p.dim() == 4 else p.detach().reshape(-1)
         for p in model.parameters()]
    )  # fmt: skip


def one_replica(tiny: Callable[..., TrainConfig], **changes: object) -> TrainConfig:
    return tiny(
        replicas=1,
        overlap=False,
        heads=True,
        epochs=9,
        max_examples=11 * 8 + 2 + 8 * 8,  # a whole epoch, its short last batch included, and more
        lr=0.01,
        **changes,
    )


@pytest.mark.parametrize("rule", ["momentum", "nesterov"])
@pytest.mark.parametrize("transport", ["direct", "grpc"])
def test_unfused_is_bit_for_bit(
    tiny: Callable[..., TrainConfig], rule: str, transport: Literal["direct", "grpc"]
) -> None:
    config = one_replica(tiny, kernel="unfused", rule=rule)
    values, expected = trained(config, transport), reference(config)
    assert torch.equal(values, expected)


def test_fused_stays_within_rounding(tiny: Callable[..., TrainConfig]) -> None:
    """It differs in the last place of one update; the network carries that through twenty."""
    config = one_replica(tiny, kernel="fused")
    torch.testing.assert_close(trained(config, "grpc"), reference(config), rtol=1e-5, atol=1e-7)


def test_the_reference_would_notice(tiny: Callable[..., TrainConfig]) -> None:
    config = one_replica(tiny, kernel="unfused")
    other = one_replica(tiny, kernel="unfused", momentum=0.89)
    assert not torch.equal(trained(config, "direct"), reference(other))
