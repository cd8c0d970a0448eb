"""Initial values from other weights, as far as name and shape fit."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from distbelief.config import TrainConfig
from distbelief.errors import ConfigError, DataError, UsageError
from distbelief.product.frozen import FROZEN, frozen_state
from distbelief.runtime.beginning import begin
from distbelief.runtime.prepare import prepare
from distbelief.runtime.task import Task
from distbelief.runtime.transfer import Taken, read_weights, take_weights
from distbelief.runtime.worker import ModelSpec
from distbelief.storage import LocalStorage, Storage


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


NAMES = (
    "0.weight",
    "0.bias",
    *(f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    "2.weight",
    "2.bias",
)


def weights(value: float = 7.0) -> dict[str, Tensor]:
    return {name: torch.full_like(t, value) for name, t in network().state_dict().items()}


def pt(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


FILES: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "a.safetensors": save,
    "a.pt": pt,
    "a.pth": pt,
    "a.bin": lambda tensors: pt(tensors, _use_new_zipfile_serialization=False),
}


def test_names_are_those() -> None:
    assert tuple(network().state_dict()) == NAMES


@pytest.mark.parametrize("name", FILES)
def test_all_that_fits_is_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name](weights()))
    model = network()
    taken = take_weights(model, str(tmp_path / name))
    assert (sorted(taken.taken), taken.unused, taken.left) == (sorted(NAMES), {}, ())
    assert all(torch.equal(t, torch.full_like(t, 7.0)) for t in model.state_dict().values())


def test_a_runs_folder_has_its_model(storage: Storage) -> None:
    storage.write("config.json", b"{}")
    storage.write("model.safetensors", save(weights()))
    model = network()
    assert set(take_weights(model, storage.url).taken) == set(NAMES)
    assert torch.equal(model[0].weight, torch.full((4, 3), 7.0))
    other = network()
    assert len(take_weights(other, f"{storage.url}/model.safetensors").taken) == len(NAMES)


def test_what_does_not_fit_is_told_and_left(tmp_path: Path) -> None:
    found = weights()
    del found["1.weight"]
    found["2.weight"] = torch.ones(5, 4)
    found["2.bias"] = torch.ones(5)
    found["head.bias"] = torch.ones(1)
    found["1.num_batches_tracked"] = torch.ones(1, dtype=torch.int64)
    (tmp_path / "a.safetensors").write_bytes(save(found))
    model, drawn = network(), network()
    taken = take_weights(model, str(tmp_path / "a.safetensors"))
    assert taken.unused == {
        "2.weight": "5x4, wanted 2x4",
        "2.bias": "5, wanted 2",
        "head.bias": "no such name",
        "1.num_batches_tracked": "1, wanted a scalar",
    }
    assert taken.left == ("1.weight", "1.num_batches_tracked", "2.weight", "2.bias")
    assert set(taken.taken) == {"0.weight", "0.bias", "1.bias", "1.running_mean", "1.running_var"}
    for name, tensor in model.state_dict().items():
        expected = drawn.state_dict()[name] if name in taken.left else torch.full_like(tensor, 7.0)
        assert torch.equal(tensor, expected)


def test_parameters_stay_the_objects_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(
        save({name: t.half() for name, t in weights().items() if t.is_floating_point()})
    )
    model = network()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    take_weights(model, str(tmp_path / "a.safetensors"))
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())


@pytest.mark.parametrize(
    ("taken", "sentence"),
    [
        (Taken(taken=("a", "b"), unused={}, left=()), "2 of 2 tensors taken"),
        (
            Taken(taken=("a",), unused={"b": "no such name"}, left=("c", "d")),
            "1 of 3 tensors taken; 1 not used: b (no such name); 2 as drawn: c, d",
        ),
        (
            Taken(taken=("a",), unused={}, left=tuple("bcdefg")),
            "1 of 7 tensors taken; 6 as drawn: b, c, d, e and 2 more",
        ),
        (
            Taken(taken=("a",), unused=dict.fromkeys("bcdefg", "no"), left=()),
            "1 of 1 tensors taken; 6 not used: b (no), c (no), d (no), e (no) and 2 more",
        ),
    ],
)
def test_what_the_user_is_told(taken: Taken, sentence: str) -> None:
    assert taken.sentence() == sentence


def test_if_nothing_fits_both_sides_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pt({f"x{i}": torch.ones(1) for i in range(6)}))
    with pytest.raises(ConfigError) as caught:
        take_weights(network(), str(path))
    assert caught.value.field == "init_from"
    assert caught.value.problem == (
        f"nothing in {path} fits the network by name and shape: it has x0, x1, x2, x3 and 2 more; "
        f"the network has 0.weight, 0.bias, 1.weight, 1.bias and 5 more"
    )


# What is not read


class Malicious:
    """Runs a command when it is unpickled by whoever trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin"])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    how: str, hidden: bool, name: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    value = {**weights(), "0.weight": Malicious(mark)} if hidden else Malicious(mark)
    content = {
        "zip": lambda: pt(value),
        "legacy": lambda: pt(value, _use_new_zipfile_serialization=False),
        "pickle": lambda: pickle.dumps(value, protocol=2),
    }[how]()
    path = tmp_path / name
    path.write_bytes(content)
    model, drawn = network(), network()
    with pytest.raises(ConfigError) as caught:
        take_weights(model, str(path))
    assert caught.value.field == "init_from"
    assert caught.value.problem.startswith(f"{path} holds no weights: ")
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    for name_, tensor in model.state_dict().items():
        assert torch.equal(tensor, drawn.state_dict()[name_])


def test_the_trap_would_work_if_it_were_trusted(tmp_path: Path) -> None:
    torch.load(io.BytesIO(pt(Malicious(tmp_path / "mark"))), weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "value",
    [torch.ones(3), [torch.ones(3)], {"a": 1}, {"state_dict": {"a": torch.ones(1)}}, "text"],
)
def test_what_is_no_state_dict(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pt(value))
    with pytest.raises(ConfigError, match="is no state dict: names with tensors are wanted"):
        read_weights(str(path))


@pytest.mark.parametrize("damage", ["empty", "cut", "rubbish", "json"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(damage: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    whole = FILES[name](weights())
    content = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "rubbish": bytes(range(256)) * 9,
        "json": b'{"0.weight": [1, 2]}',
    }[damage]
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        take_weights(network(), str(path))
    assert caught.value.field == "init_from"
    assert str(path) in caught.value.problem


def test_what_is_not_there(storage: Storage) -> None:
    for name in ("", "/a.safetensors"):
        with pytest.raises(UsageError, match=storage.url):
            take_weights(network(), f"{storage.url}{name}")


def test_a_run_without_a_model_yet(storage: Storage) -> None:
    storage.write("config.json", b"{}")
    with pytest.raises(ConfigError, match=f"cannot read {storage.url}/model.safetensors") as caught:
        take_weights(network(), storage.url)
    assert caught.value.field == "init_from"


# In a run


def test_the_initial_values_of_a_run_are_those_that_fit(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny()
    n_outputs = prepare(config).n_outputs
    values = Task().build_model(config, n_outputs).state_dict()
    some = {name: (t + 1).contiguous() for name, t in list(values.items())[:3]}
    storage = LocalStorage(tmp_path / "weights")
    storage.write("a.safetensors", save(some))
    source = f"{storage.url}/a.safetensors"
    prepared = prepare(tiny(init_from=source))
    views = prepared.layout.views(prepared.initial)
    for name, view in views.items():
        assert torch.equal(view, values[name] + 1 if name in some else values[name])
    (note,) = prepared.notes
    assert note.startswith("initial values: 3 of 112 tensors taken; ")
    assert prepared.frozen is None  # the shards hold all of it


def partly_frozen(num_classes: int) -> nn.Module:
    """A network of which no shard holds the first layer, nor what it has normalised by."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(768, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes)
    )
    model[1].requires_grad_(False)
    return model


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Weights that a network of ten outputs takes as they are."""
    state = {name: torch.full_like(t, 7.0) for name, t in partly_frozen(10).state_dict().items()}
    LocalStorage(tmp_path / "weights").write("a.safetensors", save(state))
    return str(tmp_path / "weights" / "a.safetensors")


FROM_ELSEWHERE = (
    *("1.weight", "1.bias"),
    *(f"2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
)


def test_what_no_shard_holds_reaches_every_process_by_the_runs_folder(
    source: str, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    task = Task(model=partly_frozen)
    prepared = prepare(tiny(init_from=source), task=task)
    begin(prepared)
    assert {*load(prepared.storage.read(FROZEN))} == {*FROM_ELSEWHERE}
    (tmp_path / "weights").rename(tmp_path / "away")  # another host does not see it
    spec = pickle.loads(pickle.dumps(ModelSpec.of(prepared)))
    _, model, layout = spec.open()
    assert layout.size == prepared.layout.size
    state = model.state_dict()
    for name in FROM_ELSEWHERE:
        assert torch.equal(state[name], torch.full_like(state[name], 7.0)), name
    assert not model[1].weight.requires_grad


def test_without_initial_values_from_elsewhere_nothing_is_frozen_into_the_folder(
    tiny: Callable[..., TrainConfig],
) -> None:
    prepared = prepare(tiny(), task=Task(model=partly_frozen))
    begin(prepared)
    assert not prepared.storage.exists(FROZEN)
    ModelSpec.of(prepared).open()


def test_frozen_values_that_do_not_fit_are_told(
    source: str, tiny: Callable[..., TrainConfig]
) -> None:
    prepared = prepare(tiny(init_from=source), task=Task(model=partly_frozen))
    begin(prepared)
    for content in (b"x", save({"1.weight": torch.ones(2)})):
        prepared.storage.write(FROZEN, content)
        with pytest.raises(DataError, match="does not fit the network") as caught:
            ModelSpec.of(prepared).open()
        assert caught.value.path == f"{prepared.storage.url}/{FROZEN}"


def test_tensors_that_share_their_memory_are_frozen_apart() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    model[1].weight = model[0].weight
    content = frozen_state(model)
    assert content is not None
    assert {*load(content)} == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_initial_values_have_a_seed_of_their_own(tiny: Callable[..., TrainConfig]) -> None:
    def initial(**changes: Any) -> Tensor:
        return prepare(tiny(**changes)).initial

    assert torch.equal(initial(seed=3), initial(seed=4, init_seed=3))
    assert not torch.equal(initial(seed=3), initial(seed=3, init_seed=4))
