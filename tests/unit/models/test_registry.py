"""Networks by name and by import path."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from distbelief.config import ModelConfig
from distbelief.errors import ConfigError
from distbelief.models import GoogLeNet, build, losses, main_logits, names

HERE = __name__
not_callable = 3


class Plain(nn.Module):
    """A factory without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(2, 3, 2)
        self.other = nn.Parameter(torch.rand(3, 2, dtype=torch.float64).t())


class Factories:
    """Factories behind an attribute of an attribute."""

    @staticmethod
    def linear(num_classes: int) -> nn.Module:
        return nn.Linear(2, num_classes)


def not_a_module(num_classes: int) -> str:
    return "network"


def needs_more(num_classes: int, depth: int) -> nn.Module:
    raise AssertionError("must not be called")


def small(**changes: object) -> ModelConfig:
    return ModelConfig(**{"width": 0.05, **changes})


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_names() -> None:
    assert names() == ("googlenet",)


def test_googlenet_takes_its_configuration() -> None:
    model = build(small(lrn=False, heads=False), classes=5, image_size=32, seed=0)
    assert isinstance(model, GoogLeNet)
    found = (model.width, model.lrn, model.heads, model.classes, model.image_size, model.training)
    assert found == (0.05, False, False, 5, 32, True)


@pytest.mark.parametrize("init", ["caffe", "he"])
def test_init_kind_is_passed_on(init: str) -> None:
    model = build(small(init=init), classes=5, image_size=32, seed=0)
    bias = model.get_parameter("stem.conv1.bias")
    torch.testing.assert_close(bias, torch.full_like(bias, 0.2 if init == "caffe" else 0.0))


@pytest.mark.parametrize("model", ["googlenet", f"{HERE}:Plain"])
def test_values_are_the_seeds_alone(model: str) -> None:
    def built(seed: int) -> Tensor:
        torch.rand(3)  # moves the global generator, which must not matter
        return flat(build(small(model=model), classes=5, image_size=16, seed=seed))

    before = torch.get_rng_state()
    first = build(small(model=model), classes=5, image_size=16, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flat(first), built(1))
    assert not torch.equal(flat(first), built(2))


@pytest.mark.parametrize("last", [True, False])
def test_memory_format(last: bool) -> None:
    model = build(small(channels_last=last), classes=5, image_size=16, seed=0)
    kernel = model.get_parameter("stem.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last) == last
    assert kernel.is_contiguous() != last
    other = build(small(channels_last=not last), classes=5, image_size=16, seed=0)
    assert torch.equal(flat(model), flat(other))


def test_foreign_parameters_become_float32_and_dense() -> None:
    model = build(small(model=f"{HERE}:Plain"), classes=5, image_size=16, seed=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.is_contiguous() for p in model.parameters())


def test_attributes_of_attributes_are_found() -> None:
    model = build(small(model=f"{HERE}:Factories.linear"), classes=5, image_size=16, seed=0)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 5


@pytest.mark.parametrize(
    ("model", "heads", "keys"),
    [
        ("torchvision.models:resnet18", True, ["loss"]),
        ("torchvision.models:googlenet", True, ["loss", "main", "aux1", "aux2"]),
        ("torchvision.models:googlenet", False, ["loss"]),
        ("torchvision.models.googlenet:googlenet", True, ["loss", "main", "aux1", "aux2"]),
    ],
)
def test_torchvision_networks_give_losses(model: str, heads: bool, keys: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = build(ModelConfig(model=model, heads=heads), classes=5, image_size=32, seed=0)
        outputs = network(torch.randn(2, 3, 32, 32))
    assert main_logits(outputs).shape == (2, 5)
    found = losses(outputs, torch.tensor([1, 4]), 0.3)
    assert sorted(found) == sorted(keys)
    found["loss"].backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("googlenett", "did you mean 'googlenet'"),
        ("GoogLeNet", "did you mean 'googlenet'"),
        ("xyz", "take googlenet or an import path, package.module:function"),
        ("torchvision.models.resnet18", "package.module:function"),
        (":resnet18", "not of the form package.module:function"),
        ("torchvision.models:", "not of the form package.module:function"),
        ("torchvision:models:resnet18", "not of the form package.module:function"),
        (".models:resnet18", "not of the form package.module:function"),
        ("no_such_package.models:net", "cannot import 'no_such_package.models'"),
        (f"{HERE}:needs_mor", "did you mean 'needs_more'"),
        (f"{HERE}:not_callable", "is not a function but of type int"),
        (f"{HERE}:not_a_module", "must return a torch.nn.Module, not str"),
        (f"{HERE}:needs_more", "missing a required argument: 'depth'"),
    ],
)
def test_errors_name_the_network_and_the_remedy(model: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ModelConfig(model=model), classes=5, image_size=32, seed=0)
    assert caught.value.field == "model"
    assert text in str(caught.value)


# A user's own network


class Tied(nn.Module):
    """Two layers that share one weight, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(3, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.frozen(self.second(self.first(x)))
        return found


def given(model: object, **changes: object) -> nn.Module:
    return build(small(**changes), classes=5, image_size=16, seed=0, given=model)  # type: ignore[arg-type]


def test_a_factory_in_place_of_a_name() -> None:
    assert given(Factories.linear).weight.shape == (5, 2)
    assert given(lambda: nn.Linear(2, 3)).weight.shape == (3, 2)
    first, second = given(Plain), given(Plain)
    assert torch.equal(flat(first), flat(second))


def test_a_module_is_copied_with_its_values() -> None:
    mine = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).double().eval()
    model = given(mine)
    assert model is not mine
    assert torch.equal(flat(model), flat(mine).float())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.training
    assert type(model[1]) is not nn.Dropout  # a seeded one, and mine stays as it was
    assert (type(mine[1]), mine[0].weight.dtype, mine.training) == (
        nn.Dropout,
        torch.float64,
        False,
    )


@pytest.mark.parametrize("model", [lambda: "network", lambda: None])
def test_a_factory_that_makes_no_network(model: object) -> None:
    with pytest.raises(ConfigError, match=r"must return a torch\.nn\.Module") as caught:
        given(model)
    assert caught.value.field == "model"


def test_tied_parameters_stay_one_and_frozen_ones_frozen() -> None:
    for model in (given(Tied), given(Tied())):
        assert model.second.weight is model.first.weight
        assert [p.requires_grad for p in model.frozen.parameters()] == [False, False]
        assert [name for name, _ in model.named_parameters()] == [
            *("first.weight", "first.bias", "second.bias"),
            *("frozen.weight", "frozen.bias"),
        ]


class Complex(nn.Module):
    """A parameter that asynchronous arithmetic does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


REFUSED: dict[str, tuple[object, str]] = {
    "SyncBatchNorm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)),
        "1 (SyncBatchNorm) waits for all replicas, which asynchronous ones do not: take BatchNorm, "
        "whose statistics are recomputed for the averaged weights",
    ),
    "SyncBatchNorm alone": (
        lambda: nn.SyncBatchNorm(4),
        "the network (SyncBatchNorm) waits for all replicas",
    ),
    **{
        f"InstanceNorm{d}d": (
            lambda d=d: nn.Sequential(
                nn.Identity(),
                nn.Sequential(getattr(nn, f"InstanceNorm{d}d")(4, track_running_stats=True)),
            ),
            f"1.0 (InstanceNorm{d}d) keeps running statistics that cannot be recomputed for the "
            f"averaged weights: set track_running_stats=False",
        )
        for d in (1, 2, 3)
    },
    "LazyLinear": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(4)),
        "1 (LazyLinear) has no shape before the first batch: give it its sizes",
    ),
    "LazyConv2d": (
        lambda: nn.LazyConv2d(4, 3),
        "the network (LazyConv2d) has no shape before the first batch",
    ),
    "LazyBatchNorm2d": (
        nn.LazyBatchNorm2d,
        "the network (LazyBatchNorm2d) has no shape before the first batch",
    ),
    "LazyBatchNorm2d without parameters": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm2d(affine=False)),
        "1 (LazyBatchNorm2d) has no shape before the first batch: give it its sizes",
    ),
    "complex": (Complex, "phase is complex; parameters must be real"),
}


@pytest.mark.parametrize(("model", "text"), REFUSED.values(), ids=REFUSED)
def test_what_would_train_wrongly_is_refused(model: object, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules say that they are new
        with pytest.raises(ConfigError) as caught:
            given(model)
    assert caught.value.field == "model"
    assert caught.value.problem.startswith(text)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.InstanceNorm1d(4)),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm(4),
        lambda: nn.Embedding(4, 3),
        lambda: nn.LSTM(3, 4),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
    ],
)
def test_what_is_not_refused(model: object) -> None:
    assert isinstance(given(model), nn.Module)


def test_a_factory_that_cannot_be_called_is_called_by_its_own_name() -> None:
    with pytest.raises(ConfigError) as caught:
        given(needs_more)
    assert caught.value.problem == "cannot call 'needs_more': missing a required argument: 'depth'"


def test_a_given_object_that_cannot_be_called_is_called_by_its_type() -> None:
    class Maker:
        def __call__(self, depth: int) -> nn.Module:
            raise AssertionError("must not be called")

    with pytest.raises(ConfigError, match=r"cannot call '.*Maker': missing a required argument"):
        given(Maker())
