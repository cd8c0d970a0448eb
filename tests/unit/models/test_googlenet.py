"""GoogLeNet against the paper's table 1 and closed forms of its parts."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distbelief.errors import ConfigError
from distbelief.models.googlenet import GoogLeNet, Logits, scaled
from distbelief.models.layers import Inception, InceptionChannels

# Name, output channels, output side at 224 x 224, parameters: the paper's shapes, biases included.
PAPER_MODULES = [
    ("inception3a", 256, 28, 163_696),
    ("inception3b", 480, 28, 388_736),
    ("inception4a", 512, 14, 376_176),
    ("inception4b", 512, 14, 449_160),
    ("inception4c", 512, 14, 510_104),
    ("inception4d", 528, 14, 605_376),
    ("inception4e", 832, 14, 868_352),
    ("inception5a", 832, 7, 1_043_456),
    ("inception5b", 1024, 7, 1_444_080),
]


@pytest.fixture(scope="module")
def paper() -> GoogLeNet:
    return GoogLeNet().eval()


@pytest.fixture(scope="module")
def paper_shapes(paper: GoogLeNet) -> dict[str, tuple[int, ...]]:
    return shapes(paper, 224)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(model: nn.Module, side: int) -> dict[str, tuple[int, ...]]:
    """Each module's output shape without the batch, seen by hooks."""
    seen: dict[str, tuple[int, ...]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: tuple(output.shape[1:])})
        )
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return seen


def test_parameter_counts_are_the_papers(paper: GoogLeNet) -> None:
    assert n_parameters(paper) == 13_378_280
    assert n_parameters(GoogLeNet(heads=False)) == 6_998_552


@pytest.mark.parametrize(("name", "channels", "side", "parameters"), PAPER_MODULES)
def test_modules_are_the_papers(
    paper: GoogLeNet,
    paper_shapes: dict[str, tuple[int, ...]],
    name: str,
    channels: int,
    side: int,
    parameters: int,
) -> None:
    assert n_parameters(paper.get_submodule(name)) == parameters
    assert paper_shapes[name] == (channels, side, side)


def test_stem_and_pools_have_the_papers_sizes(paper_shapes: dict[str, tuple[int, ...]]) -> None:
    expected = {
        "stem.conv1": (64, 112, 112),
        "stem.pool1": (64, 56, 56),
        "stem.reduce": (64, 56, 56),
        "stem.conv2": (192, 56, 56),
        "stem.pool2": (192, 28, 28),
        "pool3": (480, 14, 14),
        "pool4": (832, 7, 7),
        "classifier.pool": (1024, 1, 1),
        "classifier.fc": (1000,),
    }
    assert {name: paper_shapes[name] for name in expected} == expected


def test_layers_follow_the_papers_order(paper: GoogLeNet) -> None:
    stem = [name for name, _ in paper.stem.named_children()]
    assert stem == ["conv1", "pool1", "norm1", "reduce", "conv2", "norm2", "pool2"]
    assert [name for name, _ in paper.blocks()] == [
        *("stem", "inception3a", "inception3b", "pool3"),
        *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "pool4"),
        *("inception5a", "inception5b", "classifier"),
    ]


@pytest.mark.parametrize("side", [96, 97, 100, 224])
def test_poolings_round_up(side: int) -> None:
    model = GoogLeNet(width=0.03, classes=2, image_size=side).eval()
    seen = shapes(model, side)
    expected = (side - 1) // 2 + 1
    for name in ("stem.pool1", "stem.pool2", "pool3", "pool4"):
        expected = math.ceil((expected - 3) / 2) + 1
        assert seen[name][1:] == (expected, expected), name


def test_dropout_rates_are_the_papers(paper: GoogLeNet) -> None:
    rates = {n: m.p for n, m in paper.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"aux1.dropout": 0.7, "aux2.dropout": 0.7, "classifier.dropout": 0.4}


def test_lrn_has_caffes_constants(paper: GoogLeNet) -> None:
    x = 100 * torch.randn(2, 64, 3, 3, dtype=torch.float64)
    padded = functional.pad(x.square(), (0, 0, 0, 0, 2, 2))
    window = torch.stack([padded[:, i : i + 64] for i in range(5)]).sum(0)
    expected = x / (1 + 1e-4 / 5 * window) ** 0.75
    for name in ("stem.norm1", "stem.norm2"):
        torch.testing.assert_close(paper.get_submodule(name)(x), expected)


def test_inception_concatenates_its_four_rectified_branches() -> None:
    module = Inception(6, InceptionChannels(1, 2, 3, 2, 4, 5))
    weights = dict(module.named_parameters())
    x = torch.randn(2, 6, 7, 7)

    def conv(x: Tensor, name: str, padding: int = 0) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.conv2d(x, weight, bias, padding=padding).clamp(min=0)

    expected = [
        conv(x, "branch1x1"),
        conv(conv(x, "branch3x3.reduce"), "branch3x3.conv", 1),
        conv(conv(x, "branch5x5.reduce"), "branch5x5.conv", 2),
        conv(functional.max_pool2d(x, 3, 1, 1), "branch_pool.project"),
    ]
    assert [part.shape[1] for part in expected] == [1, 3, 4, 5]
    torch.testing.assert_close(module(x), torch.cat(expected, 1))


def test_heads_see_4a_and_4d() -> None:
    model = GoogLeNet(width=0.05, classes=3)
    for layer in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        layer.eval()
    x = torch.randn(2, 3, 224, 224)
    outputs = model(x)
    for name, block in model.blocks():
        x = block(x)
        if name in ("inception4a", "inception4d"):
            head = model.aux1 if name == "inception4a" else model.aux2
            w = dict(head.named_parameters())
            y = functional.avg_pool2d(x, 5, 3)
            y = functional.conv2d(y, w["conv.weight"], w["conv.bias"]).clamp(min=0).flatten(1)
            y = functional.linear(y, w["hidden.weight"], w["hidden.bias"]).clamp(min=0)
            y = functional.linear(y, w["fc.weight"], w["fc.bias"])
            torch.testing.assert_close(outputs.aux1 if name == "inception4a" else outputs.aux2, y)
    torch.testing.assert_close(outputs.main, x)


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(64, 1.0, 64), (64, 0.25, 16), (16, 0.25, 4), (16, 0.1, 4), (96, 0.3, 28), (64, 2.0, 128)],
)
def test_width_rule(channels: int, width: float, expected: int) -> None:
    assert scaled(channels, width) == expected


def test_width_scales_all_but_the_classes() -> None:
    model = GoogLeNet(width=0.25, classes=7)
    weights = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert weights["stem.conv1.weight"] == (16, 3, 7, 7)
    assert weights["stem.conv2.weight"] == (48, 16, 3, 3)
    assert weights["inception3a.branch5x5.reduce.weight"] == (4, 48, 1, 1)
    assert weights["aux1.conv.weight"] == (32, 128, 1, 1)
    assert weights["aux1.hidden.weight"] == (256, 512)
    assert weights["aux2.fc.weight"] == (7, 256)
    assert weights["classifier.fc.weight"] == (7, 256)


@pytest.mark.parametrize("side", [16, 32, 64, 96, 224])
def test_every_image_size_trains(side: int) -> None:
    model = GoogLeNet(width=0.05, classes=3, image_size=side)
    outputs = model(torch.randn(2, 3, side, side))
    assert [tuple(x.shape) for x in outputs] == [(2, 3)] * 3
    torch.stack(outputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("lrn", [True, False])
@pytest.mark.parametrize(("side", "pooled"), [(16, 8), (32, 16), (33, 16), (64, 32)])
def test_small_images_get_the_light_stem(side: int, pooled: int, lrn: bool) -> None:
    model = GoogLeNet(width=0.25, classes=3, image_size=side, lrn=lrn).eval()
    seen = shapes(model, side)
    stem = [name.removeprefix("stem.") for name in seen if name.startswith("stem.")]
    assert stem == ["conv1", "pool1"] + ["norm1"] * lrn
    assert seen["stem.conv1"] == (48, side, side)
    assert seen["stem.pool1"] == (48, pooled, pooled)
    kernel = model.get_parameter("stem.conv1.weight")
    assert tuple(kernel.shape) == (48, 3, 3, 3)


def test_without_lrn_there_is_none() -> None:
    model = GoogLeNet(width=0.05, lrn=False)
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in model.modules())


def test_training_returns_the_heads_and_evaluation_the_main_logits() -> None:
    x = torch.randn(2, 3, 16, 16)
    model = GoogLeNet(width=0.05, classes=3, image_size=16)
    assert isinstance(model(x), Logits)
    assert isinstance(model.eval()(x), Tensor)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    assert isinstance(GoogLeNet(width=0.05, classes=3, image_size=16, heads=False)(x), Tensor)


def test_a_heads_parameters_follow_those_of_its_block(paper: GoogLeNet) -> None:
    order = list(dict.fromkeys(n.partition(".")[0] for n, _ in paper.named_parameters()))
    assert order == [
        *("stem", "inception3a", "inception3b", "inception4a", "aux1", "inception4b"),
        *("inception4c", "inception4d", "aux2", "inception4e"),
        *("inception5a", "inception5b", "classifier"),
    ]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"classes": 0}, "classes"),
        ({"image_size": 15}, "image_size"),
        ({"width": 0.0}, "width"),
        ({"width": math.nan}, "width"),
        ({"init": "xavier"}, "init"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, float | str], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GoogLeNet(**arguments)
    assert caught.value.field == field
