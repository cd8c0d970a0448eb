"""A replica in stages computes what one stage does: real processes, small networks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.pipelining._utils as pipelining_utils
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import squeezenet1_1

from distbelief.errors import ConfigError, StageLostError
from distbelief.models.blocks import Blocks
from distbelief.models.dropout import SeededDropout, seed_dropout, use_seeded_dropout
from distbelief.models.googlenet import GoogLeNet
from distbelief.models.stages import Stage, StagePlan, Travels
from distbelief.replica.criterion import Criterion
from distbelief.replica.group import Stages
from distbelief.replica.pipeline import PipelineStep
from distbelief.replica.step import ImageInput, Step

CPU = torch.device("cpu")
N_CLASSES = 5
BATCH = 8
RAGGED = (8, 5, 0, 6, 1, 8)
"""Rows of the batches of one run: whole ones and ragged ones, of none and of one row, too."""


class Case(NamedTuple):
    """A network and a division of it."""

    network: str
    boundaries: tuple[str, ...]
    micro_batches: int
    pipeline: str
    precision: str = "fp32"
    channels_last: bool = True

    @property
    def plan(self) -> StagePlan:
        side = 32 if self.network == "googlenet" else 64
        return StagePlan(
            boundaries=self.boundaries,
            batch_size=BATCH,
            micro_batches=self.micro_batches,
            pipeline=self.pipeline,  # type: ignore[arg-type]
            input_shape=(3, side, side),
            precision=self.precision,  # type: ignore[arg-type]
            channels_last=self.channels_last,
        )


IN_TWO = Case("googlenet", ("inception4b",), 4, "1f1b")  # behind the first head
CASES = [
    IN_TWO,
    IN_TWO._replace(pipeline="gpipe", micro_batches=1),
    IN_TWO._replace(precision="bf16"),
    Case("googlenet", ("pool3", "inception4e"), 8, "1f1b"),
    Case("googlenet", ("stem.pool1", "inception4a", "inception5b"), 4, "1f1b"),
    Case("googlenet", ("inception3a", "aux1", "aux2"), 2, "gpipe"),
    Case("squeezenet", ("features.1",), 2, "1f1b"),  # which writes over what it takes
    Case("squeezenet", ("features.5", "features.9", "classifier.1"), 8, "gpipe", "fp32", False),
]


def network(name: str) -> nn.Module:
    """With dropout, whose masks are the same however the batch is divided."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "googlenet":
            model: nn.Module = GoogLeNet(classes=N_CLASSES, width=0.25, image_size=32, init="he")
        else:
            model = squeezenet1_1(num_classes=N_CLASSES)
    use_seeded_dropout(model)
    return model.train()


def images_of(case: Case) -> ImageInput:
    return ImageInput("unit", CPU, channels_last=case.channels_last)


def batch(plan: StagePlan, n: int, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(number)
    channels, height, width = plan.input_shape
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return images, rng.integers(0, N_CLASSES, n)


def taken(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    found = {}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
            parameter.grad = None
    return found


Found = list[tuple[dict[str, Tensor], dict[str, float]]]
"""For each batch, gradients by name and losses."""


def as_numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    assert not any(loss.requires_grad for loss in losses.values())
    return {name: float(loss) for name, loss in losses.items()}


def step_of(
    group: Stages, model: nn.Module, plan: StagePlan, images: Any, criterion: Criterion
) -> tuple[Stage, PipelineStep]:
    """This stage of a network."""
    blocks = Blocks(model)
    travels = Travels.of(blocks, plan, group.stage)
    stage = Stage(blocks, plan, group.stage)
    step = PipelineStep(stage, plan, group, travels, images=images, criterion=criterion, device=CPU)
    return stage, step


def in_stages(group: Stages, case: Case, sizes: tuple[int, ...]) -> Found:
    """One stage's part."""
    plan = case.plan
    stage, step = step_of(group, network(case.network), plan, images_of(case), Criterion(0.3))
    found: Found = []
    for number, n in enumerate(sizes):
        examples, labels = batch(plan, n, number)
        seed_dropout(step.model, 1, number, 0)
        losses = step(examples if group.stage == 0 else examples[:0], labels)
        found.append((taken(stage.owned), as_numbers(losses)))
    whole = plan.parts_of(BATCH)
    assert (whole[0], len(whole)) in step._schedules
    assert len(step._schedules) <= PipelineStep.KEPT
    return found


def whole(group: Stages, case: Case, sizes: tuple[int, ...]) -> Found:
    """The same with one stage and the same micro-batches."""
    plan = case.plan
    model = network(case.network)
    found: Found = []
    for number, n in enumerate(sizes):
        images, criterion, size = images_of(case), Criterion(0.3), plan.micro_batch_size
        step = Step(model, images, criterion, CPU, plan.precision, micro_batch_size=size)
        seed_dropout(model, 1, number, 0)
        losses = step(*batch(plan, n, number))
        found.append((taken(dict(model.named_parameters())), as_numbers(losses)))
    return found


def joined(parts: list[Found]) -> Found:
    """What all stages found, each parameter once; only the last knows losses."""
    found: Found = []
    for of_stages in zip(*parts, strict=True):
        gradients: dict[str, Tensor] = {}
        for one, _ in of_stages:
            assert gradients.keys().isdisjoint(one)
            gradients |= one
        assert not any(losses for _, losses in of_stages[:-1])
        found.append((gradients, of_stages[-1][1]))
    return found


def assert_equal(found: Found, expected: Found) -> None:
    """Bit for bit."""
    for (gradients, losses), (wanted, wanted_losses) in zip(found, expected, strict=True):
        assert gradients.keys() == wanted.keys()
        assert losses == wanted_losses
        assert [n for n in wanted if not torch.equal(gradients[n], wanted[n])] == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stages_compute_what_one_does(case: Case, crew: Any) -> None:
    """Bit for bit, whole batches and ragged ones."""
    expected = crew.run(1, whole, case, RAGGED)[0]
    found = joined(crew.run(case.plan.n_stages, in_stages, case, RAGGED))
    assert_equal(found, expected)
    # Gradients that mean something: none is zero, and they differ by batch.
    names = {name for gradients, _ in found for name, g in gradients.items() if g.any()}
    assert names == {name for name, _ in network(case.network).named_parameters()}


def test_schedules_of_sizes_that_come_seldom_are_made_again(crew: Any) -> None:
    """More of them than are kept; those that were dropped once more; the whole batch's stays."""
    sizes = (8, 6, 4, 2, 1, 6, 8, 7, 5)
    found, expected = crew.run(2, in_stages, IN_TWO, sizes), crew.run(1, whole, IN_TWO, sizes)
    assert_equal(joined(found), expected[0])


# In double precision, where sums in another order do not matter


def pixels(images: NDArray[Any]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).double().div_(100.0).sub_(1.0)


def exact_loss(outputs: Any, targets: Tensor) -> Tensor:
    """That of the criterion, but in the precision of the logits."""
    main, *heads = outputs
    aux = [functional.cross_entropy(head, targets) for head in heads]
    return functional.cross_entropy(main, targets) + 0.3 * torch.stack(aux).sum()


def in_double(group: Stages, case: Case, n: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One stage's part of a batch, or, with one stage, the whole at once."""
    plan = replace(case.plan, input_dtype="float64")
    model = network(case.network).double()
    criterion = Criterion(0.3, exact_loss)
    images, labels = batch(plan, n, 0)
    if group.n_stages == 1:
        seed_dropout(model, 1, 0, 0)
        losses = Step(model, pixels, criterion, CPU, "fp32")(images, labels)  # type: ignore[arg-type]
        return taken(dict(model.named_parameters())), as_numbers(losses)
    stage, step = step_of(group, model, plan, pixels, criterion)
    seed_dropout(step.model, 1, 0, 0)
    losses = step(images, labels)
    return taken(stage.owned), as_numbers(losses)


@pytest.mark.parametrize("n", [8, 6])
def test_micro_batches_compute_what_the_whole_batch_does(n: int, crew: Any) -> None:
    ((wanted, wanted_losses),) = crew.run(1, in_double, IN_TWO, n)
    ((gradients, losses),) = joined([[found] for found in crew.run(2, in_double, IN_TWO, n)])
    assert losses["loss"] == pytest.approx(wanted_losses["loss"], rel=1e-13)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype is torch.float64
        difference = torch.linalg.vector_norm(gradient - wanted[name])
        assert difference <= 1e-12 * torch.linalg.vector_norm(wanted[name]), name


# Networks of other kinds


def one_step(
    group: Stages,
    model: nn.Module,
    boundaries: tuple[str, ...],
    examples: NDArray[Any],
    loss: Callable[..., Any] | None = None,
    labels: NDArray[Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One stage's part of a batch in two micro-batches, or, with one stage, all of it."""
    n = len(examples)
    labels = np.arange(n) % 3 if labels is None else labels
    images, criterion = ImageInput("unit", CPU, channels_last=True), Criterion(0.3, loss)
    if group.n_stages == 1:
        step = Step(model, images, criterion, CPU, "fp32", micro_batch_size=n // 2)
        seed_dropout(model, 1, 2, 3)
        losses = step(examples, labels)
        return taken(dict(model.named_parameters())), as_numbers(losses)
    plan = StagePlan(
        boundaries=boundaries,
        batch_size=n,
        micro_batches=2,
        pipeline="gpipe",
        input_shape=examples.shape[1:],
        input_dtype=str(examples.dtype),
    )
    stage, pipeline = step_of(group, model, plan, images, criterion)
    seed_dropout(pipeline.model, 1, 2, 3)
    losses = pipeline(examples, labels)
    return taken(stage.owned), as_numbers(losses)


def assert_stages_equal_one(crew: Any, *args: Any) -> Found:
    found = joined([[part] for part in crew.run(2, one_step, *args)])
    expected = crew.run(1, one_step, *args)
    assert_equal(found, expected)
    return found


def layers(*modules: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*modules)


def test_a_layer_that_drops_twice_has_the_masks_of_the_whole_batch(crew: Any) -> None:
    dropout = SeededDropout(0.5)
    model = layers(
        nn.Linear(3, 9), nn.Linear(9, 9), dropout, nn.Linear(9, 9), dropout, nn.Linear(9, 3)
    )
    assert_stages_equal_one(crew, model, ("1",), VECTORS)


VECTORS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


class OfWords(nn.Module):
    """Takes integers; its classifier has the weights of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.out(self.norm(self.mix(self.embedding(words)).sum(1)))
        return found


def test_a_network_may_take_words(crew: Any) -> None:
    words = np.arange(20).reshape(4, 5) % 7
    ((gradients, _),) = assert_stages_equal_one(crew, OfWords(), ("norm",), words)
    assert gradients["embedding.weight"].any()


class OfManyOutputs(nn.Module):
    """Returns a mapping; some of what it returns is there early, whole numbers among it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.first(x).tanh()
        early = {"head": self.head(hidden), "largest": hidden.argmax(1)}
        return {"logits": self.second(hidden), **early}


def of_a_mapping(outputs: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    main = functional.cross_entropy(outputs["logits"], targets)
    head = functional.mse_loss(outputs["head"].sum(1), outputs["largest"].float())
    return {"loss": main + head, "head": head}


def test_a_network_may_return_what_it_wants_to_a_loss_of_ones_own(crew: Any) -> None:
    args = OfManyOutputs(), ("second",), VECTORS, of_a_mapping
    ((_, losses),) = assert_stages_equal_one(crew, *args)
    assert losses.keys() == {"loss", "head"}


class OfDetached(OfManyOutputs):
    """Some of what it returns early has no gradient."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.first(x).tanh()
        early = {"head": self.head(hidden), "largest": hidden.detach().abs().amax(1)}
        return {"logits": self.second(hidden), **early}


def test_what_is_returned_may_have_no_gradient(crew: Any) -> None:
    assert_stages_equal_one(crew, OfDetached(), ("second",), VECTORS, of_a_mapping)


def test_frozen_layers_have_no_gradient(crew: Any) -> None:
    model = layers(nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    model[3].requires_grad_(False)
    ((gradients, _),) = assert_stages_equal_one(crew, model, ("2",), VECTORS)
    assert gradients.keys() == {"1.weight", "1.bias", "4.weight", "4.bias"}


# Errors


class Fails(nn.Module):
    """Passes on what it takes, but for its second call."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # and not one that only has a shape
            self._calls += 1
            if self._calls == 2:
                self._act()
        return x * 1.0


def fail() -> None:
    raise ValueError("a bug of the network's own")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_three(at: int, act: Callable[[], object]) -> tuple[nn.Sequential, tuple[str, str]]:
    """Three stages, one of which does not end well, and their boundaries."""
    found = layers(*(nn.Linear(3, 3) for _ in range(6)))
    found.insert(2 * at + 1, Fails(act))
    return found, ("3" if at < 1 else "2", "5" if at < 2 else "4")


def assert_lost(outcomes: list[Any], *knowing: int) -> None:
    """All but the stages that know better have lost touch with them."""
    for stage, outcome in enumerate(outcomes):
        if stage not in knowing:
            assert isinstance(outcome, StageLostError), outcome
            assert (outcome.replica, outcome.stage) == (7, stage)


def that_votes_for_pickles(group: Stages, *args: Any) -> Found:
    """The first stage is a stranger, who would have the others unpickle what it sends."""
    if group.stage:
        return one_step(group, *args)
    with mock.patch.object(pipelining_utils.InferenceMode, "needs_dynamic", return_value=True):
        return one_step(group, *args)


@pytest.mark.skipif(
    not hasattr(pipelining_utils, "InferenceMode"), reason="this torch's stages do not vote"
)
def test_nothing_that_another_stage_sends_is_unpickled(crew: Any) -> None:
    model = layers(nn.Linear(3, 3), nn.Linear(3, 3))
    outcomes = crew.outcomes(2, that_votes_for_pickles, model, ("1",), VECTORS, timeout_s=600.0)
    assert type(outcomes[1]) is ValueError
    assert str(outcomes[1]) == "stage 0 wants to send pickled shapes, which are not taken"
    assert_lost(outcomes, 1)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_of_the_network_comes_as_itself_and_the_others_are_told(
    at: int, crew: Any
) -> None:
    outcomes = crew.outcomes(3, one_step, *in_three(at, fail), VECTORS, timeout_s=600.0)
    assert type(outcomes[at]) is ValueError
    assert str(outcomes[at]) == "a bug of the network's own"
    assert_lost(outcomes, at)


def test_an_error_of_the_loss_comes_as_itself_and_the_others_are_told(crew: Any) -> None:
    args = layers(nn.Linear(3, 3), nn.Linear(3, 3)), ("1",), VECTORS, None, np.array([0, 1, 2, 3])
    outcomes = crew.outcomes(2, one_step, *args, timeout_s=600.0)
    assert isinstance(outcomes[1], ConfigError)
    assert outcomes[1].field == "classes"
    assert_lost(outcomes, 1)


def test_a_network_that_learns_in_buffers_is_refused_by_the_stage_that_has_them(
    crew: Any,
) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.add_(x.detach().mean(0))
            return x * 1.0

    args = layers(nn.Linear(3, 3), nn.Linear(3, 3), Counts()), ("1",), VECTORS
    first, second = crew.outcomes(2, one_step, *args)
    assert not isinstance(first, Exception)
    assert isinstance(second, ConfigError)
    assert second.field == "model"
    assert second.problem.startswith("2.mean is a buffer that training changes")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_others_of_a_stage_that_is_killed_are_told_at_once(at: int, crew: Any) -> None:
    """Long before they would have waited for it long enough."""
    outcomes = crew.outcomes(3, one_step, *in_three(at, die), VECTORS, timeout_s=600.0)
    assert isinstance(outcomes[at], EOFError)
    assert_lost(outcomes, at)
