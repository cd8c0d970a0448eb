"""What blocks are found to weigh."""

from __future__ import annotations

import torch
from torch import nn

from distbelief.config import ModelConfig
from distbelief.models.blocks import Blocks
from distbelief.models.registry import build
from distbelief.models.stages import StagePlan, travellers
from distbelief.planner.costs import BlockSize
from distbelief.planner.example import Example
from distbelief.planner.sizes import sizes

N = 6


def test_a_sequence_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 2))
    found = sizes(Blocks(model), Example(shape=(N, 3)))
    wide = N * 4 * 4
    assert found == (
        # The batch is kept for the gradient of the weights; the weights themselves do not count.
        BlockSize(name="0", n_parameters=16, handed_on=wide, kept=N * 3 * 4),
        # These two keep what they return.
        BlockSize(name="1", n_parameters=0, handed_on=wide, kept=wide),
        BlockSize(name="2", n_parameters=0, handed_on=wide, kept=wide),
        # What the last one needs is kept already, unless a stage begins with it.
        BlockSize(name="3", n_parameters=10, handed_on=0, kept=0, kept_if_first=wide),
    )


def test_frozen_parameters_are_not_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    model[1].bias.requires_grad_(True)
    assert [b.n_parameters for b in sizes(Blocks(model), Example(shape=(N, 3)))] == [0, 2]


def test_nothing_is_computed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    sizes(Blocks(model), Example(shape=(N, 3)))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        # Batch normalisation counts its batches, whatever they are.
        assert torch.equal(value, before[name]) or name == "1.num_batches_tracked"


def test_the_paper_network_hands_on_what_travels() -> None:
    model = build(ModelConfig(width=0.125), classes=10, image_size=64, seed=0)
    blocks = Blocks(model)
    found = sizes(blocks, Example(shape=(2, 3, 64, 64)))
    assert sum(b.n_parameters for b in found) == sum(p.numel() for p in model.parameters())
    for at in range(1, len(blocks)):
        plan = StagePlan(
            boundaries=(blocks.names[at],),
            batch_size=4,
            micro_batches=2,
            pipeline="1f1b",
            input_shape=(3, 64, 64),
        )
        assert found[at - 1].handed_on == sum(t.nbytes for t in travellers(blocks, plan)[1])


def test_what_is_kept_is_what_the_graph_holds() -> None:
    """Against real tensors, all blocks as one."""
    model = build(ModelConfig(width=0.125), classes=10, image_size=64, seed=0)
    batch = Example(shape=(2, 3, 64, 64)).batch(torch.device("cpu"))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(batch)
    total = sum(storage.nbytes() for storage in held.values())
    del outputs
    found = sizes(Blocks(model), Example(shape=(2, 3, 64, 64)))
    assert sum(block.kept for block in found) == total


def test_half_precision_travels_in_half() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = sizes(Blocks(model), Example(shape=(N, 3), precision="bf16"))
    assert found[0].handed_on == N * 4 * 2
