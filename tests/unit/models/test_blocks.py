"""A network as a sequence of blocks that computes what the network does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from torchvision.models import googlenet, resnet18, squeezenet1_1

from distbelief.errors import ConfigError
from distbelief.models.blocks import NEEDED, Blocks
from distbelief.models.dropout import SeededDropout, seed_dropout, use_seeded_dropout
from distbelief.models.googlenet import GoogLeNet, Logits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network of initial values that are the same each time, with dropout of our own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    use_seeded_dropout(model)
    return model.train()


def images(side: int, n: int = 2) -> Tensor:
    return torch.arange(n * 3 * side * side, dtype=torch.float32).reshape(n, 3, side, side).sin()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ours": (lambda: GoogLeNet(classes=5, width=0.1, image_size=32, init="he"), 32),
    "ours without heads": (
        lambda: GoogLeNet(classes=5, width=0.1, image_size=80, heads=False, lrn=False),
        80,
    ),
    "torchvision googlenet": (
        lambda: googlenet(weights=None, init_weights=False, num_classes=5),
        64,
    ),
    "resnet18": (lambda: resnet18(num_classes=5), 32),
    "squeezenet1_1": (lambda: squeezenet1_1(num_classes=5), 64),
}


def run(blocks: Blocks, cuts: list[int], x: Any) -> Any:
    """All of a network, a stage after another."""
    values: Any = (x,)
    for begin, end in pairwise(cuts):
        stage = blocks.stage(begin, end)
        seed_dropout(stage, 1, 2, 3)
        values = stage(*values)
    return values


def tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def backward(outputs: object) -> None:
    total = torch.stack([x.float().square().mean() for x in tensors(outputs)]).sum()
    total.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NETWORKS)
def test_all_blocks_one_after_another_are_the_network_bit_for_bit(name: str) -> None:
    make, side = NETWORKS[name]
    whole, divided = seeded(make), seeded(make)
    blocks = Blocks(divided)
    seed_dropout(whole, 1, 2, 3)
    expected = whole(images(side))
    found = run(blocks, list(range(len(blocks) + 1)), images(side))
    assert type(found) is type(expected)
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(a, b)
    backward(expected)
    backward(found)
    gradients = {n: p.grad for n, p in whole.named_parameters()}
    for parameter_name, parameter in divided.named_parameters():
        wanted = gradients[parameter_name]
        assert wanted is not None
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, wanted), parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_each_parameter_belongs_to_one_block_and_keeps_its_order(name: str) -> None:
    model = seeded(NETWORKS[name][0])
    blocks = Blocks(model)
    every = [n for n, _ in model.named_parameters()]
    assert list(blocks.parameters(0, len(blocks))) == every
    owned = [blocks.parameters(i, i + 1) for i in range(len(blocks))]
    assert sorted(n for names in owned for n in names) == sorted(every)
    half = len(blocks) // 2
    first, second = blocks.parameters(0, half), blocks.parameters(half, len(blocks))
    assert [n for n in every if n in first] == list(first)
    assert [n for n in every if n in second] == list(second)
    # Each stage has the parameters that are its own, and no others.
    for begin, end in ((0, half), (half, len(blocks))):
        there = {n for n, _ in blocks.stage(begin, end).named_parameters()}
        assert there == set(blocks.parameters(begin, end))
        assert there


@pytest.mark.parametrize("name", NETWORKS)
def test_block_names_are_different_and_found_again(name: str) -> None:
    blocks = Blocks(seeded(NETWORKS[name][0]))
    assert len(set(blocks.names)) == len(blocks) == len(blocks.names)
    assert [blocks.index(known) for known in blocks.names] == list(range(len(blocks)))


# GoogLeNet


def test_the_blocks_of_googlenet() -> None:
    blocks = Blocks(seeded(lambda: GoogLeNet(classes=5, width=0.05, image_size=224)))
    assert len(blocks) == 24
    stem = ["conv1", "pool1", "norm1", "reduce", "conv2", "norm2", "pool2"]
    inceptions = ["3a", "3b", "pool3", "4a", "aux1", "4b", "4c", "4d", "aux2", "4e", "pool4"]
    tail = ["pool", "flatten", "dropout", "fc"]
    assert blocks.names == (
        *(f"stem.{name}" for name in stem),
        *(f"inception{name}" if name[0].isdigit() else name for name in (*inceptions, "5a", "5b")),
        *(f"classifier.{name}" for name in tail),
    )


def test_what_is_there_of_the_outputs_is_passed_through() -> None:
    """The logits of the heads travel on behind the activation, as they are."""
    model = seeded(lambda: GoogLeNet(classes=5, width=0.1, image_size=32, init="he"))
    blocks = Blocks(model)
    n_handed_on, values = [], (images(32),)
    for index in range(len(blocks) - 1):
        before = values
        stage = blocks.stage(index, index + 1)
        seed_dropout(stage, 0, 0, 0)
        values = stage(*values)
        assert isinstance(values, tuple)
        for a, b in zip(values[1:], before[1:], strict=False):
            assert a is b
        n_handed_on.append(len(values))
    first, second = blocks.index("aux1"), blocks.index("aux2")
    expected = [1 + (index >= first) + (index >= second) for index in range(len(blocks) - 1)]
    assert n_handed_on == expected
    last = blocks.stage(len(blocks) - 1, len(blocks))(*values)
    assert isinstance(last, Logits)
    assert last.aux1 is values[1]
    assert last.aux2 is values[2]


def test_a_stage_shares_the_networks_own_modules() -> None:
    model = seeded(lambda: GoogLeNet(classes=5, width=0.1, image_size=32))
    stage = Blocks(model).stage(0, 4)
    own = dict(model.named_parameters())
    assert all(p is own[n] for n, p in stage.named_parameters())
    assert stage.get_submodule("stem.conv1") is model.get_submodule("stem.conv1")


def test_a_stage_leaves_the_mode_of_the_modules_within_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    model[1].eval()  # statistics that are not to be learned
    blocks = Blocks(model)
    stage = blocks.stage(0, 2)
    assert stage.training
    assert not model[1].training
    assert model[0].training
    model.eval()
    assert not blocks.stage(0, 2).training


# Networks of other kinds


class Chain(nn.Module):
    """Five layers, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(3, 3) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = layer(x)
        return x


def owned(blocks: Blocks) -> list[tuple[str, ...]]:
    return [blocks.parameters(i, i + 1) for i in range(len(blocks))]


def test_a_sequence_within_a_sequence_is_divided_too() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    blocks = Blocks(nn.Sequential(nn.Linear(2, 3), inner, nn.Linear(3, 1)))
    assert blocks.names == ("0", "1.0", "1.1", "2")
    assert owned(blocks) == [
        ("0.weight", "0.bias"),
        ("1.0.weight", "1.0.bias"),
        (),
        ("2.weight", "2.bias"),
    ]


def test_a_module_that_is_used_again_has_another_name() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.act(self.b(self.act(self.a(x))))
            return found

    blocks = Blocks(Again())
    assert blocks.names == ("a", "act", "b", "act#2")
    x = torch.ones(2, 3)
    assert torch.equal(run(blocks, [0, 1, 2, 3, 4], x), blocks.model(x))


def test_no_cut_lies_within_a_branch() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            found: Tensor = self.d(torch.cat([self.b(x), self.c(x) + x]).relu())
            return found

    assert Blocks(Branches()).names == ("a", "b", "relu", "d")


def test_no_cut_lies_between_the_uses_of_one_weight() -> None:
    class Tied(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.d.weight = self.b.weight

    blocks = Blocks(Tied())
    assert blocks.names == ("a", "b", "e")
    assert owned(blocks)[1] == ("b.weight", "b.bias", "c.weight", "c.bias", "d.bias")


def test_no_cut_lies_between_uses_of_a_weight_by_module_and_by_function() -> None:
    class Tied(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.c(self.b(self.a(x)))
            x = functional.linear(x, self.b.weight.t())
            found: Tensor = self.e(self.d(x))
            return found

    blocks = Blocks(Tied())
    assert blocks.names == ("a", "b", "d", "e")
    x = torch.ones(2, 3)
    assert torch.equal(run(blocks, [0, 1, 2, 3, 4], x), blocks.model(x))


@pytest.mark.parametrize(
    ("layer", "divided"),
    [
        (SeededDropout(0.5), False),  # whose second mask follows from its first
        (nn.BatchNorm1d(3, affine=False), False),  # whose statistics are of both
        (nn.Tanh(), True),
    ],
)
def test_no_cut_lies_between_the_uses_of_what_has_a_state(layer: nn.Module, divided: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.c(self.layer(self.b(self.layer(self.a(x)))))
            return found

    names = ("a", "layer", "b", "layer#2", "c") if divided else ("a", "layer", "c")
    assert Blocks(Twice()).names == names


def test_parameters_that_are_not_used_go_with_the_one_before() -> None:
    class Unused(Chain):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.d(self.b(x))
            return found

    model = Unused()
    assert [n[0] for n, _ in model.named_parameters()] == list("aabbccddee")
    assert owned(Blocks(model)) == [
        ("a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"),
        ("d.weight", "d.bias", "e.weight", "e.bias"),
    ]


def test_parameters_and_buffers_may_be_the_networks_own() -> None:
    class Own(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))
            self.register_buffer("shift", torch.full((3,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x) * self.scale
            found: Tensor = self.b(x + self.shift)
            return found

    blocks = Blocks(Own())
    assert blocks.names == ("a", "scale", "shift", "b")
    assert blocks.parameters(1, 2) == ("scale",)
    x = torch.ones(2, 3)
    assert torch.equal(run(blocks, [0, 1, 2, 3, 4], x), blocks.model(x))


def test_a_size_that_is_taken_early_is_not_handed_on() -> None:
    class Flat(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            x = x.view(x.size(0), -1)
            found: Tensor = self.d(self.c(x))
            return found

    blocks = Blocks(Flat())
    assert blocks.names == ("a", "b", "size", "c", "d")
    x = torch.ones(2, 3)
    assert torch.equal(run(blocks, [0, 1, 2, 3, 4, 5], x), blocks.model(x))


def test_arguments_with_defaults_keep_them() -> None:
    class Masked(Chain):
        def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
            x = self.a(x) * scale
            if mask is not None:
                x = x * mask
            found: Tensor = self.b(x)
            return found

    blocks = Blocks(Masked())
    x = torch.ones(2, 3)
    cuts = list(range(len(blocks) + 1))
    assert torch.equal(run(blocks, cuts, x), blocks.model(x))
    assert blocks.names[-3:] == ("a", "mul", "b")


def test_arguments_with_defaults_are_no_blocks() -> None:
    class Scaled(Chain):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            found: Tensor = self.b(self.a(x) * scale)
            return found

    assert Blocks(Scaled()).names == ("a", "mul", "b")


def test_a_network_may_return_a_mapping() -> None:
    class Mapped(Chain):
        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.a(x)
            early = {"early": x.sum(1), "both": x}
            x = self.b(x)
            return {"late": [self.c(x)], **early}

    blocks = Blocks(Mapped())
    x = torch.ones(2, 3)
    found, expected = run(blocks, list(range(len(blocks) + 1)), x), blocks.model(x)
    assert found.keys() == expected.keys() == {"late", "early", "both"}
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(a, b)
    assert len(blocks) > 1


class Branching(nn.Module):
    """What it computes depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return -found if found.sum() > 0 else found


def test_what_cannot_be_traced_within_is_one_block() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Branching(), nn.Linear(3, 3))
    blocks = Blocks(model)
    assert blocks.names == ("0", "1", "2")
    assert blocks.parameters(1, 2) == ("1.inner.weight", "1.inner.bias")
    for x in (torch.ones(2, 3), -torch.ones(2, 3)):
        assert torch.equal(run(blocks, [0, 1, 2, 3], x), model(x))


class Loops(Branching):
    """How often depends on a size."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):
            x = self.inner(x)
        return x


class Fails(Branching):
    """Does not like what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("first line\nsecond line")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Branching(), r"TraceError: symbolically traced variables cannot be used as inputs to"),
        (Loops(), r"TypeError: 'Proxy' object cannot be interpreted as an integer"),
        (Fails(), r"KeyError: 'first line"),
    ],
)
def test_a_network_that_cannot_be_divided_is_told_what_it_needs(
    model: nn.Module, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Blocks(model)
    assert caught.value.field == "stages"
    text = str(caught.value)
    assert text.startswith(f"--stages: {type(model).__name__} cannot be divided ({said}")
    assert text.endswith(f"; {NEEDED}")
    assert "\n" not in text


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("inception4", "did you mean 'inception4e'?"),
        ("inceptoin3a", "did you mean 'inception3a'?"),
        ("aux", "did you mean 'aux2'?"),
    ],
)
def test_a_name_that_is_none_is_told_the_nearest(name: str, hint: str) -> None:
    blocks = Blocks(seeded(lambda: GoogLeNet(classes=5, width=0.05, image_size=32)))
    with pytest.raises(ConfigError) as caught:
        blocks.index(name)
    assert str(caught.value) == f"--boundaries: the network has no block {name!r}; {hint}"


def test_a_name_that_is_like_no_other_is_told_all() -> None:
    with pytest.raises(ConfigError) as caught:
        Blocks(nn.Sequential(nn.Linear(2, 2), nn.Tanh())).index("stem")
    assert str(caught.value) == "--boundaries: the network has no block 'stem'; they are 0, 1"


def test_the_name_of_what_is_divided_is_that_of_its_first_block() -> None:
    blocks = Blocks(seeded(lambda: GoogLeNet(classes=5, width=0.05, image_size=32)))
    assert blocks.index("classifier") == blocks.index("classifier.pool")
    assert blocks.index("stem") == 0
