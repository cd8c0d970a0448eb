"""One step: pixels in, gradients and losses out."""

import copy
import os
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from distbelief.errors import ConfigError
from distbelief.models.dropout import SeededDropout, seed_dropout
from distbelief.replica.criterion import Criterion
from distbelief.replica.step import (
    BufferWatch,
    ImageInput,
    Step,
    resolve_device,
    resolve_precision,
)

CPU = torch.device("cpu")
IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
LABELS = np.array([0, 2])


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class WithHead(nn.Module):
    """Main logits and one auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.head = network(1), network(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.main(x), self.head(x)


def step_of(
    model: nn.Module,
    precision: Literal["fp32", "bf16"] = "fp32",
    *,
    loss: Any = None,
    micro_batch_size: int | None = None,
) -> Step:
    return Step(
        model=model,
        images=ImageInput("unit", CPU, channels_last=True),
        criterion=Criterion(0.5, loss),
        device=CPU,
        precision=precision,
        watch=BufferWatch(model),
        micro_batch_size=micro_batch_size,
    )


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("cuda", [False, True])
def test_devices(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    assert resolve_device("auto") == torch.device("cuda" if cuda else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
def test_a_gpu_must_be_there(device: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: index + 1)
    assert resolve_device(device) == torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: index)
    with pytest.raises(ConfigError) as caught:
        resolve_device(device)
    assert caught.value.field == "device"
    assert str(caught.value) == (
        f"--device: host {os.uname().nodename} has no CUDA device {index}; take cpu or auto"
    )


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "expected"),
    [
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("fp32", "cuda", True, "fp32"),
        ("bf16", "cuda", False, "bf16"),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
    ],
)
def test_precision(
    precision: str, device: str, has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has(name: str) -> Any:
        return lambda **_: has_bf16 if name == device else not has_bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has("cuda"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", has("cpu"))
    assert resolve_precision(precision, torch.device(device)) == expected


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_become_normalised_planes(channels_last: bool) -> None:
    out = ImageInput("unit", CPU, channels_last)(IMAGES)
    assert (out.shape, out.dtype) == ((2, 3, 4, 4), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert out.is_contiguous() != channels_last
    mean = torch.tensor([0.485, 0.456, 0.406]) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225]) * 255
    expected = (torch.from_numpy(IMAGES).float() - mean) / deviation
    torch.testing.assert_close(out, expected.permute(0, 3, 1, 2))


def test_caffe_takes_the_mean_away_and_scales_nothing() -> None:
    out = ImageInput("caffe", CPU, True)(IMAGES)
    difference = torch.from_numpy(IMAGES).float().permute(0, 3, 1, 2) - out
    mean = difference[0, :, 0, 0]
    torch.testing.assert_close(difference, mean.view(1, 3, 1, 1).expand_as(difference))
    assert all(100 < value < 130 for value in mean.tolist())


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.arange(6.0).reshape(2, 3), torch.float32),
        (np.ones((2, 3, 4, 4), dtype=np.float32), torch.float32),
        (np.ones((2, 4, 4, 3), dtype=np.float16), torch.float16),
        (np.arange(6).reshape(2, 3), torch.int64),
        (np.ones((2, 3), dtype=np.uint8), torch.uint8),
        (np.ones((2, 3, 4, 4), dtype=np.uint8), torch.uint8),
    ],
)
def test_other_inputs_than_images_stay_as_they_are(given: Any, dtype: torch.dtype) -> None:
    out = ImageInput("unit", CPU, True)(given)
    assert out.dtype == dtype
    assert np.array_equal(out.numpy(), given)


def test_the_images_are_left_alone() -> None:
    images = IMAGES.copy()
    ImageInput("caffe", CPU, True)(images)
    assert np.array_equal(images, IMAGES)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    model = network()
    step = step_of(model)
    found = step(IMAGES, LABELS)
    plain = copy.deepcopy(model)
    plain.zero_grad()
    loss = functional.cross_entropy(plain(step.images(IMAGES)), torch.from_numpy(LABELS))
    loss.backward()
    assert torch.equal(gradients(model), gradients(plain))
    assert found.keys() == {"loss"}
    assert found["loss"].item() == loss.item()
    assert not found["loss"].requires_grad


def test_gradients_add_up_where_they_are() -> None:
    model = network()
    kept = {p: torch.ones_like(p) for p in model.parameters()}
    for p, gradient in kept.items():
        p.grad = gradient
    step_of(model)(IMAGES, LABELS)
    assert all(p.grad is gradient for p, gradient in kept.items())
    other = network()
    step_of(other)(IMAGES, LABELS)
    torch.testing.assert_close(gradients(model), gradients(other) + 1)


def test_auxiliary_losses_have_their_weight() -> None:
    found = step_of(WithHead())(IMAGES, LABELS)
    assert found.keys() == {"loss", "main", "aux1"}
    torch.testing.assert_close(found["loss"], found["main"] + 0.5 * found["aux1"])


def test_a_batch_without_rows_adds_nothing() -> None:
    model = network()
    assert step_of(model)(IMAGES[:0], LABELS[:0]) == {}
    assert all(p.grad is None for p in model.parameters())


def test_bf16_computes_in_bf16_and_keeps_float32_gradients() -> None:
    model, seen = network(), list[torch.dtype]()
    model[3].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    found = step_of(model, "bf16")(IMAGES, LABELS)
    assert seen == [torch.bfloat16]
    assert found["loss"].dtype is torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    exact = network()
    step_of(exact)(IMAGES, LABELS)
    difference = torch.linalg.vector_norm(gradients(model) - gradients(exact))
    # Of eight bits of mantissa: other than float32's, and near it.
    assert 0 < difference < 0.05 * torch.linalg.vector_norm(gradients(exact))


# A user's own loss


def own(loss: Any, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    return step_of(model or network(), loss=loss)(IMAGES, LABELS)


def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets).square().mean()


def test_a_loss_of_ones_own_is_minimised() -> None:
    model, plain = network(), network()
    found = own(squares, model)
    loss = squares(plain(ImageInput("unit", CPU, True)(IMAGES)), torch.from_numpy(LABELS))
    loss.backward()
    assert found.keys() == {"loss"}
    assert (found["loss"].item(), found["loss"].requires_grad) == (loss.item(), False)
    assert torch.equal(gradients(model), gradients(plain))


def test_a_loss_may_have_parts_of_which_one_is_minimised() -> None:
    def parts(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": squares(outputs, targets), "size": outputs.detach().abs().mean()}

    model, plain = network(), network()
    found = own(parts, model)
    own(squares, plain)
    assert found.keys() == {"loss", "size"}
    assert torch.equal(gradients(model), gradients(plain))


def test_a_loss_sees_whatever_the_network_returns() -> None:
    seen: list[Any] = []

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        seen.append((type(outputs), len(outputs), targets.tolist()))
        total: torch.Tensor = outputs[0].sum() + outputs[1].sum()
        return total

    own(loss, WithHead())
    assert seen == [(tuple, 2, [0, 2])]


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: outputs[:, 0],
        lambda outputs, targets: outputs.detach().sum(),
        lambda outputs, targets: torch.tensor(1.0),
        lambda outputs, targets: {"total": outputs.sum()},
        lambda outputs, targets: {},
        lambda outputs, targets: {"loss": outputs},
        lambda outputs, targets: {"loss": outputs.sum(), "other": outputs},
        lambda outputs, targets: {"loss": outputs.sum(), "other": 1.5},
        lambda outputs, targets: None,
        lambda outputs, targets: 1.5,
        lambda outputs, targets: (outputs.sum(), outputs.sum()),
        lambda outputs, targets: {"loss": 1.5},
    ],
)
def test_a_loss_that_cannot_be_minimised_is_told(loss: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        own(loss)
    assert str(caught.value) == (
        "--loss: must return a scalar tensor with a gradient, or a mapping of scalar tensors that "
        "has it as 'loss'"
    )


# A batch in parts


def rows(n: int) -> tuple[Any, Any]:
    images = np.random.default_rng(1).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return images, np.arange(n) % 3


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (8, 2, 4 * [2]),
        (8, 3, [3, 3, 2]),
        (7, 3, [3, 2, 2]),
        (8, 8, [8]),
        (8, 9, [8]),
        (8, None, [8]),
    ],
)
def test_parts_are_even_and_no_larger_than_asked(
    n: int, size: int | None, expected: list[int]
) -> None:
    model, seen = network(), list[int]()
    model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    step_of(model, micro_batch_size=size)(*rows(n))
    assert seen == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_a_batch_in_parts_has_the_gradient_and_losses_of_the_whole(size: int) -> None:
    """In double precision, where the order of sums does not matter."""

    def pixels(images: Any) -> torch.Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        found = functional.cross_entropy(outputs, targets)
        return {"loss": found, "twice": 2 * found.detach()}

    found = []
    for micro_batch_size in (None, size):
        model = network().double()
        step = Step(
            model=model,
            images=pixels,  # type: ignore[arg-type]
            criterion=Criterion(0.5, loss),
            device=CPU,
            precision="fp32",
            micro_batch_size=micro_batch_size,
        )
        losses = step(*rows(6))
        assert not any(value.requires_grad for value in losses.values())
        found.append((gradients(model), float(losses["loss"]), float(losses["twice"])))
    (whole, *losses_of_whole), (parts, *losses_of_parts) = found
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)
    assert losses_of_parts == pytest.approx(losses_of_whole, rel=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_batch_in_parts_has_the_masks_of_the_whole(size: int) -> None:
    seen: list[torch.Tensor] = []
    dropout = SeededDropout(0.5)  # used twice: its masks do not simply follow one another
    dropout.register_forward_hook(lambda module, args, out: seen.append(out != 0))
    model = nn.Sequential(nn.Flatten(), dropout, nn.Linear(48, 48), dropout, nn.Linear(48, 3))
    for micro_batch_size in (None, size):
        seed_dropout(model, 1, 2, 3)
        step_of(model, micro_batch_size=micro_batch_size)(*rows(4))
    first, second, *parts = seen
    assert torch.equal(torch.cat(parts[::2]), first)
    assert torch.equal(torch.cat(parts[1::2]), second)


def test_a_network_that_learns_in_buffers_is_refused_at_its_first_step() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.n.add_(1)
            return x

    model = nn.Sequential(network(), Counts())
    with pytest.raises(ConfigError) as caught:
        step_of(model)(IMAGES, LABELS)
    assert caught.value.field == "model"
    assert caught.value.problem.startswith("1.n is a buffer that training changes; ")


def test_the_statistics_of_batch_normalisation_are_no_such_buffers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), network())
    step = step_of(model)
    step(IMAGES, LABELS)
    assert model[0].running_mean.any()
    step(IMAGES, LABELS)
