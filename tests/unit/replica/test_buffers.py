"""A model bound to flat vectors."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from distbelief.layout import Layout
from distbelief.replica.buffers import FlatModel

CPU = torch.device("cpu")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    weight = model[0].weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model


def bind(model: nn.Module) -> tuple[FlatModel, Layout]:
    layout = Layout.of(model.named_parameters())
    return FlatModel(model, layout, CPU), layout


def images() -> torch.Tensor:
    return torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4).sin()


def backward(model: nn.Module) -> None:
    functional.cross_entropy(model(images()), torch.tensor([0, 2])).backward()


def assert_bound(flat: FlatModel, layout: Layout) -> None:
    """Each parameter and gradient is a view at its place in the vectors, by pointer."""
    named = dict(flat.model.named_parameters())
    for p in layout.parameters:
        tensor = named[p.name]
        assert tensor.data_ptr() == flat.parameters.data_ptr() + 4 * p.begin
        assert tensor.grad is not None
        assert tensor.grad.data_ptr() == flat.gradient.data_ptr() + 4 * p.begin
        assert (tuple(tensor.shape), tensor.stride()) == (p.shape, p.stride)
        assert (tuple(tensor.grad.shape), tensor.grad.stride()) == (p.shape, p.stride)


def test_binding_keeps_the_values_and_makes_views() -> None:
    plain = network()
    flat, layout = bind(copy.deepcopy(plain))
    assert_bound(flat, layout)
    for name, tensor in plain.named_parameters():
        assert torch.equal(flat.model.get_parameter(name), tensor)
    assert torch.equal(flat.gradient, torch.zeros(layout.size))
    for vector in (flat.parameters, flat.gradient, flat.incoming):
        assert (vector.shape, vector.dtype) == ((layout.size,), torch.float32)
    assert torch.equal(flat.model(images()), plain(images()))


def test_channels_last_weights_stay_so_in_the_vector_too() -> None:
    flat, layout = bind(network())
    weight = flat.model.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    p = layout.parameters[0]
    by_memory = weight.detach().permute(0, 2, 3, 1).flatten()
    assert torch.equal(flat.parameters[p.begin : p.end], by_memory)


def test_model_and_vector_are_one_memory() -> None:
    flat, _ = bind(network())
    flat.parameters.fill_(2.0)
    assert all(torch.equal(p, torch.full_like(p, 2.0)) for p in flat.model.parameters())
    with torch.no_grad():
        flat.model.get_parameter("3.bias").fill_(5.0)
    assert flat.parameters[-3:].tolist() == [5.0, 5.0, 5.0]


def test_backward_fills_the_gradient_and_adds_up() -> None:
    plain = network()
    flat, layout = bind(copy.deepcopy(plain))
    backward(plain)
    backward(flat.model)
    expected = torch.empty(layout.size)
    for name, view in layout.views(expected).items():
        view.copy_(plain.get_parameter(name).grad)
    assert expected.abs().sum() > 0
    assert torch.equal(flat.gradient, expected)
    backward(flat.model)
    assert torch.equal(flat.gradient, 2 * expected)
    assert_bound(flat, layout)


def test_swapping_in_exchanges_the_vectors_without_a_copy() -> None:
    flat, layout = bind(network())
    old, new = flat.parameters, flat.incoming
    new.copy_(torch.arange(layout.size))
    gradient = flat.gradient.data_ptr()
    parameters = list(flat.model.parameters())
    flat.swap_in()
    assert flat.parameters is new
    assert flat.incoming is old
    assert_bound(flat, layout)
    assert torch.equal(flat.parameters, torch.arange(layout.size, dtype=torch.float32))
    assert flat.model.get_parameter("3.bias").tolist() == [
        float(i) for i in range(layout.size - 3, layout.size)
    ]
    assert flat.gradient.data_ptr() == gradient
    # An optimizer or a hook that holds a parameter holds it still.
    assert all(a is b for a, b in zip(parameters, flat.model.parameters(), strict=True))
    flat.incoming.fill_(-1.0)  # free again: what the model has is untouched
    assert flat.parameters[0] == 0.0
    flat.swap_in()
    assert flat.parameters is old
    assert_bound(flat, layout)


def test_the_model_computes_with_what_came_in() -> None:
    flat, _ = bind(network())
    flat.incoming.zero_()
    flat.swap_in()
    assert torch.equal(flat.model(images()), torch.zeros(2, 3))


def test_a_taken_gradient_is_the_vector_itself_and_a_zeroed_one_takes_its_place() -> None:
    flat, layout = bind(network())
    first = flat.gradient
    backward(flat.model)
    values = first.clone()
    taken = flat.take_gradient()
    assert taken is first
    assert torch.equal(taken, values)
    assert flat.gradient is not first
    assert torch.equal(flat.gradient, torch.zeros(layout.size))
    assert_bound(flat, layout)
    backward(flat.model)  # beside the one that is being pushed
    assert torch.equal(taken, values)
    assert torch.equal(flat.gradient, values)


def test_the_two_gradients_take_turns() -> None:
    flat, layout = bind(network())
    a, b, c = (flat.take_gradient() for _ in range(3))
    assert a is c
    assert a is not b
    c.fill_(7.0)  # a shard may leave anything in it
    backward(flat.model)
    assert flat.take_gradient() is b
    assert torch.equal(flat.gradient, torch.zeros(layout.size))


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    frozen = model[0].weight.data_ptr()
    flat, layout = bind(model)
    assert layout.size == 16 * 3 + 3
    backward(flat.model)
    flat.swap_in()
    assert flat.model[0].weight.data_ptr() == frozen
    assert flat.model[0].weight.grad is None
    assert_bound(flat, layout)


class Tied(nn.Module):
    """The decoder's weight is the encoder's; the layer between them is frozen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.encoder = nn.Linear(3, 4, bias=False)
            self.between = nn.Linear(4, 4).requires_grad_(False)
            self.decoder = nn.Linear(3, 4)
            self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.between(self.encoder(x))
        found: torch.Tensor = functional.linear(hidden, self.decoder.weight.t())
        return found + self.decoder.bias.sum()


def test_tied_parameters_are_one_range_and_their_gradients_one_sum() -> None:
    plain = Tied()
    flat, layout = bind(copy.deepcopy(plain))
    assert [p.name for p in layout.parameters] == ["encoder.weight", "decoder.bias"]
    assert layout.size == 3 * 4 + 4
    model = flat.model
    assert model.encoder.weight is model.decoder.weight
    assert_bound(flat, layout)
    x = torch.arange(6.0).reshape(2, 3).sin()
    for net in (plain, model):
        net(x).square().sum().backward()
    assert torch.equal(model.encoder.weight.grad, plain.encoder.weight.grad)
    assert torch.equal(flat.gradient[:12].view(4, 3), plain.encoder.weight.grad)
    assert torch.equal(flat.gradient[12:], plain.decoder.bias.grad)
    frozen = model.between.weight.clone()
    flat.parameters.add_(flat.gradient, alpha=-0.5)
    torch.optim.SGD((p for p in plain.parameters() if p.requires_grad), lr=0.5).step()
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model.between.weight, frozen)
    flat.incoming.fill_(2.0)
    flat.swap_in()
    assert model.encoder.weight is model.decoder.weight
    assert torch.equal(model.decoder.weight, torch.full((4, 3), 2.0))


def test_a_sparse_gradient_stays_in_the_vector() -> None:
    flat, layout = bind(nn.Embedding(4, 3, sparse=True))
    flat.model(torch.tensor([1, 1, 3])).sum().backward()
    assert_bound(flat, layout)
    assert flat.gradient.view(4, 3).tolist() == [[0.0] * 3, [2.0] * 3, [0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("swaps", [0, 1, 2])
def test_steps_in_the_vector_are_steps_of_the_model(swaps: int) -> None:
    flat, _ = bind(network())
    for _ in range(swaps):
        flat.incoming.copy_(flat.parameters)
        flat.swap_in()
    plain = copy.deepcopy(flat.model)
    plain.zero_grad()
    backward(plain)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    backward(flat.model)
    flat.parameters.add_(flat.gradient, alpha=-0.1)
    for name, tensor in plain.named_parameters():
        assert torch.equal(flat.model.get_parameter(name), tensor)


# A stage's part of a network


def test_only_what_a_stage_owns_is_bound() -> None:
    model = network()
    layout = Layout.of(model.named_parameters())
    owned = {name: model.get_parameter(name) for name in ("3.weight", "3.bias")}
    part = layout.part(owned)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = FlatModel(model[3], part, CPU, owned)
    assert flat.parameters.numel() == part.size == 16 * 3 + 3
    assert torch.equal(flat.parameters, torch.cat([before["3.weight"].flatten(), before["3.bias"]]))
    for p in part.parameters:
        assert owned[p.name].data_ptr() == flat.parameters.data_ptr() + 4 * p.begin
        assert owned[p.name].grad is not None
    assert model[0].weight.grad is None
    backward(model)
    assert torch.equal(flat.gradient[-3:], model[3].bias.grad)
    assert flat.gradient.any()
    flat.incoming.fill_(2.0)
    flat.swap_in()
    assert torch.equal(model[3].bias, torch.full((3,), 2.0))
    assert torch.equal(model[0].weight, before["0.weight"])


def test_what_a_stage_owns_may_be_parameters_that_it_does_not_use() -> None:
    """They have zeros for gradients, as in a network that is whole."""
    model = network()
    layout = Layout.of(model.named_parameters())
    owned = dict(model.named_parameters())
    flat = FlatModel(model[0], layout, CPU, owned)
    model[0](images()).sum().backward()
    views = layout.views(flat.gradient)
    assert views["0.weight"].any()
    assert not views["3.weight"].any()
    assert model[3].weight.grad is not None
