"""A network's stages: where they begin, what travels between them, how batches are divided."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from distbelief.errors import ConfigError
from distbelief.models.blocks import NEEDED, Blocks
from distbelief.models.dropout import SeededDropout, seed_dropout, use_seeded_dropout
from distbelief.models.googlenet import GoogLeNet, Logits
from distbelief.models.stages import (
    Stage,
    StagePlan,
    Traveller,
    Travels,
    even_parts,
    travellers,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan_of(*boundaries: str, **changes: Any) -> StagePlan:
    fields: dict[str, Any] = {
        "boundaries": boundaries,
        "batch_size": 8,
        "micro_batches": 4,
        "pipeline": "1f1b",
        "input_shape": (3,),
    }
    return StagePlan(**{**fields, **changes})


def chain(n: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(n)))


def googlenet() -> nn.Module:
    torch.manual_seed(0)
    model = GoogLeNet(classes=5, width=0.1, image_size=32, init="he")
    use_seeded_dropout(model)
    return model


def squeezenet() -> nn.Module:
    torch.manual_seed(0)
    model = squeezenet1_1(num_classes=5)
    use_seeded_dropout(model)
    return model.to(memory_format=torch.channels_last)


# Even parts


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_parts_are_even_and_as_few_as_may_be(n: int, longest: int) -> None:
    sizes = even_parts(n, longest)
    assert sum(sizes) == n
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[-1] <= sizes[0] <= longest
    assert sizes[0] - sizes[-1] <= 1
    assert (len(sizes) - 1) * longest < n <= len(sizes) * longest


@settings(deadline=None)
@given(st.integers(1, 64), st.data())
def test_a_batch_has_as_many_parts_as_it_is_to_have(batch_size: int, data: st.DataObject) -> None:
    """Or fewer, by the rounding of their size; and at least as many as a smaller batch."""
    micro_batches = data.draw(st.integers(1, batch_size))
    plan = plan_of("1", batch_size=batch_size, micro_batches=micro_batches)
    whole = plan.parts_of(batch_size)
    assert whole[0] <= plan.micro_batch_size == math.ceil(batch_size / micro_batches)
    assert len(whole) <= micro_batches
    n = data.draw(st.integers(1, batch_size))
    assert len(plan.parts_of(n)) <= len(whole)
    assert plan.parts_of(n)[0] <= plan.micro_batch_size


@pytest.mark.parametrize(
    ("n", "longest", "sizes"),
    [
        (32, 4, 8 * [4]),
        (32, 32, [32]),
        (32, 7, [7, 7, 6, 6, 6]),
        (7, 4, [4, 3]),
        (9, 4, 3 * [3]),
        (2, 4, [2]),
        (5, 1, 5 * [1]),
    ],
)
def test_sizes_of_parts(n: int, longest: int, sizes: list[int]) -> None:
    assert even_parts(n, longest) == sizes


def test_parts_of_whole_and_ragged_batches() -> None:
    plan = plan_of("1", "2")
    assert plan.n_stages == 3
    assert plan.micro_batch_size == 2
    assert [plan.parts_of(n) for n in (8, 7, 5, 2, 1)] == [
        [2, 2, 2, 2],
        [2, 2, 2, 1],
        [2, 2, 1],
        [2],
        [1],
    ]


@pytest.mark.parametrize(
    ("pipeline", "n_micro_batches", "expected"),
    [("1f1b", 3, True), ("1f1b", 4, True), ("1f1b", 2, False), ("gpipe", 4, False)],
)
def test_micro_batches_take_turns_if_there_is_one_for_each_stage(
    pipeline: Literal["1f1b", "gpipe"], n_micro_batches: int, expected: bool
) -> None:
    assert plan_of("1", "2", pipeline=pipeline).in_turn(n_micro_batches) is expected


# Where stages begin


def test_stages_begin_at_their_boundaries() -> None:
    blocks = Blocks(chain())
    assert plan_of().cuts(blocks) == [(0, 4)]
    assert plan_of("1").cuts(blocks) == [(0, 1), (1, 4)]
    assert plan_of("1", "3").cuts(blocks) == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize("boundaries", [("2", "1"), ("1", "1"), ("0",), ("0", "2")])
def test_boundaries_that_are_not_in_order_are_refused(boundaries: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(*boundaries).cuts(Blocks(chain()))
    assert str(caught.value) == (
        f"--boundaries: {','.join(boundaries)}: each must come behind the one before, and none is "
        f"the first block; their order is 0, 1, 2, 3"
    )


def test_boundaries_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--boundaries: the network has no block '9'; they are"):
        plan_of("9").cuts(Blocks(chain()))


def test_a_stage_with_nothing_to_train_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3))
    blocks = Blocks(model)
    plan_of("1").check(blocks)
    with pytest.raises(ConfigError) as caught:
        plan_of("1", "3").check(blocks)
    assert str(caught.value) == (
        "--boundaries: stage 1 (1 to 2) has nothing to train; move a boundary"
    )
    model[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"stage 0 \(0 to 0\) has nothing to train"):
        plan_of("1").check(blocks)


# What travels


def run(model: nn.Module, plan: StagePlan, x: Tensor) -> tuple[list[tuple[Tensor, ...]], Any]:
    """What each stage takes and the last returns, and what the network returns."""
    blocks = Blocks(model)
    found, stage = [(x,)], None
    for index in range(plan.n_stages):
        stage = Stage(blocks, plan, index)
        seed_dropout(stage.graph, 1, 2, 3)
        found.append(stage(*found[-1]))
    assert stage is not None
    return found, stage.returned


NETWORKS = {
    "googlenet": (googlenet, ("inception4b", "inception5a"), (3, 32, 32)),
    "squeezenet": (squeezenet, ("features.5", "classifier.1"), (3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_what_is_said_to_travel_is_what_travels(
    name: str, precision: Literal["fp32", "bf16"], channels_last: bool
) -> None:
    make, boundaries, shape = NETWORKS[name]
    plan = plan_of(*boundaries, input_shape=shape, precision=precision, channels_last=channels_last)
    model = make()
    said = travellers(Blocks(model), plan)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.linspace(-2, 2, 2 * math.prod(shape)).reshape(2, *shape).to(memory_format=memory)
    travelled, _ = run(model, plan, x)
    assert [[(t.shape, t.dtype) for t in of_stage] for of_stage in said] == [
        [(tuple(x.shape), x.dtype) for x in of_stage] for of_stage in travelled
    ]
    for of_stage in travelled[1:-1]:
        assert all(t.is_contiguous() for t in of_stage)
        assert of_stage[0].dtype is (torch.bfloat16 if precision == "bf16" else torch.float32)
    if channels_last:
        n, height, width, channels = said[1][0].shape
        assert (n, height) == (2, width)
        assert channels > width


def test_heads_logits_travel_behind_the_activation() -> None:
    plan = plan_of("inception4b", "inception5a", input_shape=(3, 32, 32))
    first, second, third, last = travellers(Blocks(googlenet()), plan)
    logits = Traveller((2, 5), torch.float32)
    assert first == (Traveller((2, 3, 32, 32), torch.float32),)
    assert second[1:] == (logits,)
    assert third[1:] == (logits, logits)
    assert last == (logits, logits, logits)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_what_travels_of_a_ragged_batch(n_rows: int) -> None:
    (first, second, last) = travellers(Blocks(chain()), plan_of("2"), n_rows)
    assert first == second == last == (Traveller((n_rows, 3), torch.float32),)


def test_what_travels_is_counted_in_bytes() -> None:
    assert Traveller((2, 3, 4), torch.float32).nbytes == 96
    assert Traveller((2, 3, 4), torch.bfloat16).nbytes == 48
    assert Traveller((), torch.int64).nbytes == 8
    zeros = Traveller((2, 3), torch.bfloat16).zeros()
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((2, 3), torch.bfloat16, False)


def test_a_network_may_take_other_types() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    found = travellers(Blocks(model), plan_of("1", input_dtype="int64"))
    assert found == [
        (Traveller((2, 3), torch.int64),),
        (Traveller((2, 3, 4), torch.float32),),
        (Traveller((2, 2), torch.float32),),
    ]


def test_finding_out_what_travels_draws_and_changes_nothing() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), SeededDropout(0.5), nn.Dropout(0.5), nn.Linear(3, 2)
    )
    seed_dropout(model, 1, 2, 3)
    values = {name: tensor.clone() for name, tensor in model.named_parameters()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    generator = torch.get_rng_state()
    travellers(Blocks(model), plan_of("2"))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    masks = model[2](torch.ones(100))
    seed_dropout(model, 1, 2, 3)
    assert torch.equal(model[2](torch.ones(100)), masks)


# What one stage takes and hands on, of any number of rows


@pytest.mark.parametrize("name", NETWORKS)
def test_what_travels_is_known_for_any_number_of_rows(name: str) -> None:
    make, boundaries, shape = NETWORKS[name]
    blocks, plan = Blocks(make()), plan_of(*boundaries, input_shape=shape, precision="bf16")
    travels = [Travels.of(blocks, plan, stage) for stage in range(3)]
    for n_rows in (1, 2, 5):
        expected = travellers(blocks, plan, n_rows)
        for stage, of_stage in enumerate(travels):
            taken, handed_on = of_stage.of_rows(n_rows)
            assert tuple(taken) == expected[stage]
            assert tuple(handed_on) == expected[stage + 1]


def test_rows_need_not_come_first_nor_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            early = {"by feature": x.t(), "one": x.mean(), "pairs": torch.cat([x, x, x[:1]])}
            return {"late": self.b(x), **early}

    blocks, plan = Blocks(Odd()), plan_of("b")
    travels = Travels.of(blocks, plan, 0)
    for n_rows in (1, 2, 7):
        _, handed_on = travels.of_rows(n_rows)
        assert tuple(handed_on) == travellers(blocks, plan, n_rows)[1]
    assert sorted(one.shape for one in handed_on) == [(), (4, 7), (7, 4), (15, 4)]


def test_a_stage_hands_on_the_types_that_are_settled() -> None:
    """Whatever its device would choose by itself."""
    model = chain()
    kinds = [torch.bfloat16]
    stage = Stage(Blocks(model), plan_of("1"), 0, hands_on=kinds)
    x = torch.ones(2, 3)
    (found,) = stage(x)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, model[0](x).bfloat16())
    last = Stage(Blocks(model), plan_of("1"), 1, hands_on=kinds)
    assert last(x)[0].dtype is torch.float32  # which hands on nothing


def test_a_block_that_depends_on_values_is_told_what_is_needed() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x)
            return -found if found.sum() > 0 else found

    blocks = Blocks(nn.Sequential(nn.Linear(3, 3), Branching(), nn.Linear(3, 3)))
    with pytest.raises(ConfigError) as caught:
        travellers(blocks, plan_of("2"))
    assert str(caught.value).endswith(NEEDED)


# Stages


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_stages_one_after_another_are_the_network_bit_for_bit(
    name: str, channels_last: bool
) -> None:
    make, boundaries, shape = NETWORKS[name]
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.linspace(-2, 2, 2 * math.prod(shape)).reshape(2, *shape).to(memory_format=memory)
    model = make()
    plan = plan_of(*boundaries, input_shape=shape, channels_last=channels_last)
    travelled, returned = run(model, plan, x)
    seed_dropout(model, 1, 2, 3)
    expected = model(x)
    assert type(returned) is type(expected)
    flat = list(expected) if isinstance(expected, Logits) else [expected]
    assert len(travelled[-1]) == len(flat)
    for a, b in zip(travelled[-1], flat, strict=True):
        assert torch.equal(a, b)


def test_each_stage_owns_its_parameters_under_the_networks_names() -> None:
    model = chain()
    blocks = Blocks(model)
    first, second = (Stage(blocks, plan_of("1"), index) for index in range(2))
    assert list(first.owned) == ["0.weight", "0.bias"]
    assert list(second.owned) == [f"{i}.{n}" for i in (1, 2, 3) for n in ("weight", "bias")]
    own = dict(model.named_parameters())
    assert all(p is own[name] for s in (first, second) for name, p in s.owned.items())
    assert (first.is_first, first.is_last) == (True, False)
    assert (second.is_first, second.is_last) == (False, True)


def test_a_layer_in_place_leaves_what_travelled_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    stage = Stage(Blocks(model), plan_of("1"), 1)
    travelled = torch.full((2, 3), -1.0, requires_grad=True)
    (found,) = stage(travelled)
    found.sum().backward()
    assert torch.equal(travelled, torch.full((2, 3), -1.0))
    assert travelled.grad is not None
    assert torch.equal(travelled.grad, torch.zeros(2, 3))


def test_the_last_stage_keeps_what_the_network_returns() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.b(self.a(x))
            return {"logits": x, "rest": [x * 2, "a word", None]}

    stage = Stage(Blocks(Mapped()), plan_of("b"), 1)
    found = stage(torch.ones(2, 3))
    assert stage.returned["rest"][1:] == ["a word", None]
    assert len(found) == 2
    assert found[0] is stage.returned["logits"]
    assert found[1] is stage.returned["rest"][0]


def test_a_network_that_is_not_divided_is_one_stage() -> None:
    model = chain()
    stage = Stage(Blocks(model), plan_of(), 0)
    assert (stage.is_first, stage.is_last) == (True, True)
    x = torch.ones(2, 3)
    assert torch.equal(stage(x)[0], model(x))
    assert list(stage.owned) == [n for n, _ in model.named_parameters()]
