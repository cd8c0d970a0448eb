"""The flat vector: views, strides, segments, shards."""

import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distbelief.errors import ConfigError
from distbelief.layout import Layout, Parameter, Segment


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def parameters(*shapes: tuple[int, ...]) -> list[tuple[str, torch.Tensor]]:
    return [(f"p{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate(shapes)]


def test_parameters_lie_in_order_without_gaps() -> None:
    layout = Layout.of(network().named_parameters(), bias_rate=2.0)
    rows = [(p.name, p.shape, p.begin, p.end, p.rate, p.decay) for p in layout.parameters]
    assert rows == [
        ("0.weight", (3, 2, 2, 2), 0, 24, 1.0, 1.0),
        ("0.bias", (3,), 24, 27, 2.0, 0.0),
        ("1.weight", (3,), 27, 30, 1.0, 0.0),
        ("1.bias", (3,), 30, 33, 2.0, 0.0),
        ("3.weight", (4, 12), 33, 81, 1.0, 1.0),
        ("3.bias", (4,), 81, 85, 2.0, 0.0),
    ]
    assert layout.size == 85


def test_a_bias_is_known_by_the_last_part_of_its_name() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    layout = Layout.of(
        [("bias", weight), ("bias.weight", weight), ("unbias", weight)], bias_rate=3.0
    )
    assert [(p.rate, p.decay) for p in layout.parameters] == [(3.0, 0.0), (1.0, 1.0), (1.0, 1.0)]


def test_frozen_parameters_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    layout = Layout.of(model.named_parameters())
    assert [p.name for p in layout.parameters] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert layout.parameters[0].begin == 0


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--model: has no trainable parameters$"):
        Layout.of(nn.ReLU().named_parameters())


def test_views_share_the_vector_and_have_the_models_shapes() -> None:
    layout = Layout.of(network().named_parameters())
    flat = torch.arange(85.0)
    views = layout.views(flat)
    assert torch.equal(views["0.bias"], torch.tensor([24.0, 25.0, 26.0]))
    assert torch.equal(views["3.weight"], flat[33:81].view(4, 12))
    views["3.bias"].fill_(-1.0)
    assert torch.equal(flat[81:], torch.full((4,), -1.0))
    assert torch.equal(flat[:81], torch.arange(81.0))


def test_views_into_a_part_of_a_larger_vector() -> None:
    layout = Layout.of(parameters((2, 2), (3,)))
    buffer = torch.arange(20.0)
    views = layout.views(buffer[5:12])
    assert torch.equal(views["p0"], torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    assert torch.equal(views["p1"], torch.tensor([9.0, 10.0, 11.0]))


def test_channels_last_survives() -> None:
    conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    layout = Layout.of(conv.named_parameters())
    flat = torch.zeros(layout.size)
    view = layout.views(flat)["weight"]
    assert view.is_contiguous(memory_format=torch.channels_last)
    view.copy_(conv.weight)
    assert torch.equal(view, conv.weight)
    # In memory: the channels of a pixel are neighbours.
    assert torch.equal(flat[:48], conv.weight.detach().permute(0, 2, 3, 1).flatten())


@pytest.mark.parametrize(
    ("tensor", "stride"),
    [
        (torch.zeros(2, 3), (3, 1)),
        (torch.zeros(3, 2).t(), (1, 2)),
        (torch.zeros(4, 6)[:, :3], (3, 1)),  # gaps
        (torch.zeros(1, 3).expand(2, 3), (3, 1)),  # elements that share memory
        (torch.zeros(()), ()),
        (torch.zeros(5), (1,)),
        (torch.zeros(10)[::2], (1,)),
    ],
)
def test_strides(tensor: torch.Tensor, stride: tuple[int, ...]) -> None:
    layout = Layout.of([("p", tensor.requires_grad_())])
    assert layout.parameters[0].stride == stride


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_any_permutation_of_dimensions_survives(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape).permute(order)
    layout = Layout.of([("p", tensor.requires_grad_())])
    flat = torch.zeros(layout.size)
    with torch.no_grad():
        layout.views(flat)["p"].copy_(tensor)
    assert torch.equal(flat, torch.arange(float(layout.size)))  # each element once, in its place


def test_fingerprint_is_of_everything_that_must_agree() -> None:
    base = Layout.of(network().named_parameters(), bias_rate=2.0)
    assert base.fingerprint == Layout.of(network().named_parameters(), bias_rate=2.0).fingerprint
    others = [
        Layout.of(network().named_parameters(), bias_rate=1.0),
        Layout.of(
            network().to(memory_format=torch.channels_last).named_parameters(), bias_rate=2.0
        ),
        Layout.of(((f"x{n}", p) for n, p in network().named_parameters()), bias_rate=2.0),
        Layout.of(list(network().named_parameters())[:-1], bias_rate=2.0),
        Layout.of(reversed(list(network().named_parameters())), bias_rate=2.0),
    ]
    fingerprints = {layout.fingerprint for layout in [base, *others]}
    assert len(fingerprints) == len(others) + 1


def test_a_layout_travels() -> None:
    layout = Layout.of(network().named_parameters())
    back = pickle.loads(pickle.dumps(layout))
    assert back == layout
    assert back.fingerprint == layout.fingerprint


@pytest.mark.parametrize(
    ("size", "n_shards", "ranges"),
    [
        (10, 1, [(0, 10)]),
        (10, 2, [(0, 5), (5, 10)]),
        (10, 3, [(0, 3), (3, 6), (6, 10)]),
        (3, 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_shard_ranges(size: int, n_shards: int, ranges: list[tuple[int, int]]) -> None:
    assert Layout.of(parameters((size,))).shard_ranges(n_shards) == ranges


def test_more_shards_than_parameters_are_refused() -> None:
    text = r"^--shards: 11 shards for 10 parameters; take fewer$"
    with pytest.raises(ConfigError, match=text):
        Layout.of(parameters((10,))).shard_ranges(11)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.data())
def test_shard_ranges_tile_and_are_even(size: int, data: st.DataObject) -> None:
    n_shards = data.draw(st.integers(1, size))
    ranges = Layout.of(parameters((size,))).shard_ranges(n_shards)
    assert len(ranges) == n_shards
    assert (ranges[0][0], ranges[-1][1]) == (0, size)
    assert all(left[1] == right[0] for left, right in pairwise(ranges))
    sizes = [end - begin for begin, end in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_segments_merge_neighbours_that_agree() -> None:
    layout = Layout.of(network().named_parameters(), bias_rate=2.0)
    assert layout.segments(0, 85) == (
        Segment(0, 24, 1.0, 1.0),
        Segment(24, 27, 2.0, 0.0),
        Segment(27, 30, 1.0, 0.0),
        Segment(30, 33, 2.0, 0.0),
        Segment(33, 81, 1.0, 1.0),
        Segment(81, 85, 2.0, 0.0),
    )
    same = Layout.of(network().named_parameters(), bias_rate=1.0)
    assert same.segments(0, 85) == (
        Segment(0, 24, 1.0, 1.0),
        Segment(24, 33, 1.0, 0.0),
        Segment(33, 81, 1.0, 1.0),
        Segment(81, 85, 1.0, 0.0),
    )


def test_segments_count_from_the_shards_begin() -> None:
    layout = Layout.of(network().named_parameters(), bias_rate=2.0)
    assert layout.segments(25, 40) == (
        Segment(0, 2, 2.0, 0.0),
        Segment(2, 5, 1.0, 0.0),
        Segment(5, 8, 2.0, 0.0),
        Segment(8, 15, 1.0, 1.0),
    )
    assert layout.segments(3, 7) == (Segment(0, 4, 1.0, 1.0),)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1.0, 2.0]), st.booleans())), st.data()
)
def test_segments_of_shards_say_the_same_as_the_parameters(
    drawn: list[tuple[int, float, bool]], data: st.DataObject
) -> None:
    drawn = [*drawn, (4, 1.0, True)]
    found, begin = [], 0
    for i, (n, rate, decays) in enumerate(drawn):
        found.append(Parameter(f"p{i}", (n,), (1,), begin, begin + n, rate, float(decays)))
        begin += n
    layout = Layout(tuple(found))
    expected = [(rate, float(decays)) for n, rate, decays in drawn for _ in range(n)]
    said = []
    for low, high in layout.shard_ranges(data.draw(st.integers(1, 4))):
        segments = layout.segments(low, high)
        assert segments[0].begin == 0
        assert segments[-1].end == high - low
        for left, right in pairwise(segments):
            assert left.end == right.begin
            assert (left.rate, left.decay) != (right.rate, right.decay)
        said += [(s.rate, s.decay) for s in segments for _ in range(s.begin, s.end)]
    assert said == expected


# Parts of it


def test_a_part_is_the_layout_of_some_parameters_joined() -> None:
    layout = Layout.of(network().named_parameters(), bias_rate=2.0)
    part = layout.part({"3.bias", "0.bias", "3.weight"})  # in the network's order, not in this
    assert [(p.name, p.begin, p.end) for p in part.parameters] == [
        ("0.bias", 0, 3),
        ("3.weight", 3, 51),
        ("3.bias", 51, 55),
    ]
    assert part.size == 55
    whole = {p.name: p for p in layout.parameters}
    for p in part.parameters:
        of_whole = whole[p.name]
        assert (p.shape, p.stride) == (of_whole.shape, of_whole.stride)
        assert (p.rate, p.decay) == (of_whole.rate, of_whole.decay)
    assert layout.part([p.name for p in layout.parameters]) == layout


def test_ranges_tell_where_parameters_lie_and_join_neighbours() -> None:
    layout = Layout.of(network().named_parameters())
    assert layout.ranges(["0.weight", "0.bias", "1.weight"]) == [(0, 30)]
    assert layout.ranges(["3.bias", "0.bias", "3.weight"]) == [(24, 27), (33, 85)]
    assert layout.ranges([p.name for p in layout.parameters]) == [(0, 85)]
    assert layout.ranges([]) == []


def test_parameters_that_the_layout_does_not_have_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    layout = Layout.of(model.named_parameters())
    every = [name for name, _ in model.named_parameters()]  # frozen ones, too
    assert layout.part(every) == layout
    assert layout.ranges(every) == [(0, layout.size)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.data())
def test_a_parts_vector_is_its_ranges_of_the_whole(sizes: list[int], data: st.DataObject) -> None:
    layout = Layout.of(parameters(*((n,) for n in sizes)))
    names = data.draw(st.sets(st.sampled_from([p.name for p in layout.parameters]), min_size=1))
    part, ranges = layout.part(names), layout.ranges(names)
    whole = torch.arange(float(layout.size))
    own = torch.cat([whole[begin:end] for begin, end in ranges])
    assert own.numel() == part.size
    views = layout.views(whole)
    for name, view in part.views(own).items():
        assert torch.equal(view, views[name])
    assert part.views(own).keys() == names
    assert all(left[1] < right[0] for left, right in pairwise(ranges))
