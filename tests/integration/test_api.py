"""Training from Python, with objects of one's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import distbelief
from distbelief.audit import audit
from distbelief.observe.view import Lines

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def silent() -> Lines:
    return Lines(lambda line: None)


def points(n: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long())


def run(model: Any, dataset: Any, tmp_path: Path, **options: Any) -> distbelief.Run:
    defaults = {
        "epochs": 4,
        "batch_size": 16,
        "lr": 0.05,
        "threads": 1,
        "loaders": 1,
        "address": "inprocess",
        "run_dir": str(tmp_path / "run"),
    }
    return distbelief.train(model, dataset, view=silent(), **{**defaults, **options})


class Net(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


@pytest.mark.timeout(240)
def test_the_guides_program(tmp_path: Path) -> None:
    """On a local Ray, with classes of the program's own main module."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"finished: ([\d.]+)% of the points.*", done.stdout.splitlines()[-1])
    assert found, done.stdout
    assert float(found[1]) > 90
    (folder,) = (tmp_path / "runs").iterdir()
    assert audit(folder).clean


def test_a_run_has_its_summary_and_its_weights(tmp_path: Path) -> None:
    # How far the average of so few steps has come would else depend on which replica is first.
    options = {"classes": 2, "epochs": 12, "replicas": 1, "overlap": False}
    found = run(Net, (points(400), points(100, 1)), tmp_path, **options)
    assert found.status == "finished"
    assert found.validation is not None
    assert found.validation["top1"] > 0.9
    assert found.weights().keys() == Net().state_dict().keys()
    x, y = points(100, 1).tensors
    model = found.model()
    assert not model.training
    top1 = float((model(x).argmax(1) == y).float().mean())
    assert top1 == pytest.approx(found.validation["top1"])
    assert json.loads((Path(found.folder) / "summary.json").read_text()) == found.summary
    assert found.events()[-1]["kind"] == "end"


def regression(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    error = nn.functional.mse_loss(outputs[:, 0], targets)
    return {"loss": error, "absolute": (outputs[:, 0] - targets).abs().mean()}


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0]))
    options = {"loss": regression, "epochs": 12, "lr": 0.01, "momentum": 0.5}
    found = run(nn.Linear(4, 1), (data, data), tmp_path, **options)
    assert found.validation is not None
    assert found.validation["loss"] < 0.05
    assert "top1" not in found.validation
    losses = [e["losses"] for e in found.events() if e["kind"] == "items"]
    assert set(losses[0]) == {"loss", "absolute"}


def bad_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.detach().sum()


def test_a_module_keeps_its_values_and_goes_on(tmp_path: Path) -> None:
    module = nn.Linear(4, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = points(64)
    first = run(module, data, tmp_path, epochs=1, lr=1e-9, average="none")
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    for name, value in first.weights().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    again = distbelief.train(module, data, resume=first.folder, epochs=3, view=silent())
    assert again.summary["examples_applied"] == 192
    assert audit(again.folder).clean


class Tied(nn.Module):
    """Two layers of one weight, a frozen layer, batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.frozen(x))
        result: Tensor = self.head(torch.relu(self.two(torch.relu(self.one(x)))))
        return result


def test_tied_and_frozen_parameters_and_running_statistics(tmp_path: Path) -> None:
    torch.manual_seed(3)
    found = run(Tied, (points(400), points(100, 1)), tmp_path, epochs=12, lr=0.01)
    weights = found.weights()
    assert torch.equal(weights["one.weight"], weights["two.weight"])
    built = found.task.build_model(found.config, 0).state_dict()
    assert torch.equal(weights["frozen.weight"], built["frozen.weight"])
    assert bool(weights["norm.running_mean"].abs().sum() > 0)
    assert found.validation is not None
    assert found.validation["top1"] > 0.85
    record = json.loads((Path(found.folder) / "config.json").read_text())
    n_trained = sum(p.numel() for p in Tied().parameters() if p.requires_grad)
    assert record["parameters"] == n_trained
    x, y = points(100, 1).tensors
    top1 = float((found.model()(x).argmax(1) == y).float().mean())
    assert top1 == pytest.approx(found.validation["top1"])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        result: Tensor = self.layer(x)
        return result


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (Counting, {}, r"--model: seen is a buffer that training changes"),
        (lambda: nn.LazyLinear(2), {}, r"--model: .* has no shape before the first batch"),
        (lambda: nn.SyncBatchNorm(4), {}, r"--model: .*SyncBatchNorm.* waits for all replicas"),
        (lambda: 3, {}, r"--model: .* must return a torch.nn.Module, not int"),
        (
            nn.Linear(4, 2),
            {"loss": bad_loss},
            r"--loss: must return a scalar tensor",
        ),
        (nn.Linear(4, 2), {"loss": 3}, r"--loss: must be a function, not int"),
        (nn.Linear(4, 2), {"replica": 3}, r"--replica: is no option of a run; did you mean"),
        ("googlenett", {}, r"--model: there is no network 'googlenett'; did you mean 'googlenet'"),
        ("googlenet", {}, r"--classes: the data set does not tell how many there are"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    tmp_path: Path, model: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(distbelief.UsageError, match=text):
        run(model, points(64), tmp_path, **options)


def test_the_public_names() -> None:
    assert set(distbelief.__all__) == {
        *("ClusterError", "ConfigError", "DataError", "DistBeliefError", "RunError"),
        *("Run", "TrainConfig", "UsageError", "__version__", "train"),
    }
    assert all(getattr(distbelief, name) is not None for name in distbelief.__all__)


def test_importing_it_is_light() -> None:
    code = "import sys, distbelief; print({'torch', 'ray', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
