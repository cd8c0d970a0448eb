"""What users get wrong: one sentence that names it and the remedy, exit 2, nothing half-written."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import sys
import tarfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distbelief.cli import main
from distbelief.observe.events import read_events
from distbelief.runtime.claim import claimed
from distbelief.storage import storage_at

SMALL = [
    *("--address", "inprocess", "--image-size", "16", "--width", "0.0625", "--batch-size", "8"),
    *("--epochs", "1", "--loaders", "1", "--threads", "1", "--run-dir", "run"),
]
DRAWN = ["--drawn-train", "80", "--drawn-val", "10"]


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 18)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def images(root: Path) -> Path:
    """A good folder of two classes."""
    for split, n in (("train", 20), ("val", 4)):
        for name in ("cat", "dog"):
            for i in range(n):
                picture(root / split / name / f"{i}.png")
    return root


def tar_of(root: Path, member: str) -> None:
    root.mkdir()
    content = io.BytesIO()
    Image.new("RGB", (20, 20)).save(content, "PNG")
    with tarfile.open(root / "bad.tar", "w") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content.getvalue())
        tar.addfile(info, io.BytesIO(content.getvalue()))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Case:
    """A command, what is made before it, and what it must say."""

    name: str
    command: str
    says: str
    make: Callable[[Path], object] = lambda here: None


def without_train(here: Path) -> None:
    shutil.rmtree(images(here / "data") / "train")


def empty_class(here: Path) -> None:
    (images(here / "data") / "train" / "eel").mkdir()


def unknown_class(here: Path) -> None:
    picture(images(here / "data") / "val" / "eel" / "1.png")


OWN_CODE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self, outputs=10, change=lambda logits: logits):
        super().__init__()
        self.layer, self.change = nn.Linear(3 * 16 * 16, outputs), change

    def forward(self, images):
        return self.change(self.layer(images.flatten(1)))


def three(): return Net(3)
def scalar(): return Net(change=lambda logits: logits.sum())
def cut(): return Net(change=lambda logits: logits.detach())
def division(): return Net(change=lambda logits: 1 / 0)
def broken(): raise ValueError("no good")
def linear(): return nn.Linear(4, 10)
class Frozen(Net):
    def forward(self, images):
        with torch.no_grad():
            hidden = self.layer(images.flatten(1))
        return self.change(hidden + self.layer.bias)


class Branching(Net):
    def forward(self, images):
        return self.layer(images.flatten(1)) if images.sum() > 0 else self.layer.bias


def labels(split): return TensorDataset(torch.zeros(100, 4), torch.arange(100))
"""


def own_code(here: Path) -> None:
    (here / "mine.py").write_text(OWN_CODE)


CASES = [
    Case("no data", "train --data data", r"/data: does not exist: --data wants a folder with"),
    Case(
        "empty data",
        "train --data data",
        r"/data: has no folder train/",
        lambda h: (h / "data").mkdir(),
    ),
    Case("no train", "train --data data", r"/data: has no folder train/", without_train),
    Case(
        "empty class", "train --data data", r"/data/train/eel: has no images .*: add", empty_class
    ),
    Case(
        "unknown class",
        "train --data data",
        r"/data/val/eel: is a class that train/ lacks: add",
        unknown_class,
    ),
    Case(
        "a file",
        "train --data data",
        r"/data: is not a folder",
        lambda here: (here / "data").write_text("x"),
    ),
    Case(
        "train is a file",
        "train --data data",
        r"/data/train: is not a folder",
        lambda here: [(here / "data").mkdir(), (here / "data" / "train").write_text("x")],
    ),
    Case(
        "a member outside",
        "train --data data/bad.tar",
        r"bad\.tar: .*\.\./\.\./evil\.png",
        lambda here: tar_of(here / "data", "../../evil.png"),
    ),
    Case(
        "more classes than outputs",
        "train --data data --classes 1",
        r"/data: there are 2 classes, more than --classes 1: raise it",
        lambda here: images(here / "data"),
    ),
    Case("large batch", "train --batch-size 81", r"--batch-size: 81 is more than the 80 training"),
    Case("many shards", "train --shards 999999999", r"--shards: 999999999 shards for .*take fewer"),
    Case("no replicas", "train --replicas 0", r"--replicas: must be greater than 0, not 0"),
    Case("negative rate", "train --lr -0.1", r"--lr: must be greater than 0, not -0\.1"),
    Case("rate nan", "train --lr nan", r"--lr: must be greater than 0, not nan"),
    Case("no epochs", "train --epochs 0", r"--epochs: must be greater than 0, not 0"),
    Case("recipe", "train cifar01", r"there is no recipe 'cifar01'; did you mean cifar10\?"),
    Case("model", "train --model googlent", r"--model: .*'googlent'; did you mean 'googlenet'"),
    Case(
        "model's module",
        "train --model torchvision.modls:resnet18",
        r"--model: cannot import 'torchvision\.modls'",
    ),
    Case(
        "model's name",
        "train --model torchvision.models:resnet19",
        r"--model: .*has no 'resnet19'; did you mean 'resnet1",
    ),
    Case("option", "train --replica 3", r"there is no option --replica; did you mean --replicas\?"),
    Case(
        "option by another name", "train --workers 3", r"no option --workers; it is called --repl"
    ),
    Case("recipe without data", "train cifar10", r"--data: cifar10 needs it: a folder with train/"),
    Case(
        "data for a run folder",
        "train --run-dir data",
        r"--run-dir: .*/data holds train/ or val/, as data does; take another folder",
        lambda here: images(here / "data"),
    ),
    Case(
        "long name",
        f"train --run-dir {'x' * 300}",
        r"--run-dir: cannot make .*: File name too long",
    ),
    Case(
        "memory on Ray",
        "train --address local --run-dir memory://x",
        r"--run-dir: memory:// is seen by one process alone: take --address inprocess",
    ),
    Case(
        "outputs",
        "train --model mine:three",
        r"--classes: a label is \d, the network has 3 outputs, for labels 0 to 2: mend the data",
        own_code,
    ),
    Case(
        "one output", "train --model mine:scalar", r"--model: returns \(\) for 8 examples", own_code
    ),
    Case(
        "no gradient", "train --model mine:cut", r"--model: returns logits without a grad", own_code
    ),
    Case(
        "model that cannot be built",
        "train --model mine:broken",
        r"--model: mine:broken raised ValueError: no good \(.*mine\.py:\d+, in broken\); mend it",
        own_code,
    ),
    Case(
        "labels",
        "train --dataset mine:labels --classes 10 --model mine:linear",
        r"--classes: a label is \d+, the network has 10 outputs, for labels 0 to 9",
        own_code,
    ),
    Case("command", "trian", r"there is no command 'trian'; did you mean train\?"),
    Case("data set", "train --dataset nowhere:f", r"--dataset: cannot import 'nowhere'"),
    Case(
        "both data", "train --dataset a:f --data data", r"--dataset: cannot be given together with"
    ),
    Case("device", "train --device tpu", r"--device: must be auto, cpu or cuda, not 'tpu'"),
    Case(
        "address",
        f"train --address 127.0.0.1:{closed_port()}",
        r"--address .*no Ray cluster answers",
    ),
    Case("address's form", "train --address nowhere", r"--address nowhere: say auto, local"),
    Case("url", "train --run-dir nothing://x/run", r"--run-dir: cannot use nothing://x/run"),
    Case(
        "run folder is a file",
        "train --run-dir afile",
        r"--run-dir: .*/afile is a file; give a folder",
        lambda here: (here / "afile").write_text("x"),
    ),
    Case("weights", "train --init-from none", r"none: is not there: name a run's folder"),
    Case(
        "not weights",
        "train --init-from bad.safetensors",
        r"--init-from: bad\.safetensors holds no weights",
        lambda here: (here / "bad.safetensors").write_text("no weights at all"),
    ),
    Case("no run to resume", "train --resume nowhere", r"--resume: there is no run in .*/nowhere"),
    Case("no run at all", "train --resume", r"runs: holds no run; name a run's folder"),
    Case("snapshot alone", "train --resume-snapshot 3", r"--resume-snapshot: goes with --resume"),
    Case("evaluate nothing", "evaluate nowhere", r"nowhere"),
    Case("status of nothing", "status nowhere", r"nowhere"),
    Case(
        "a graph that is another network",
        "train --model mine:Frozen --stages 2",
        r"--stages: in Frozen other parameters learn \(layer.weight\); .* or train it undivided",
        own_code,
    ),
    Case(
        "no graph",
        "train --model mine:Branching --stages 2",
        r"--stages: Branching cannot be divided .* write it as an nn.Sequential",
        own_code,
    ),
    Case("too many stages", "train --stages 9", r"--stages: 9 stages for a batch of 8; take fewer"),
    Case("no such block", "train --stages 2 --boundaries x", r"--boundaries: .* no block 'x'"),
    Case("one boundary", "train --boundaries x", r"divides into 2 stages, .*; give --stages 2"),
    Case("a group of none", "train --replica-group x", r"'x' does not say how many; write it as"),
    Case("two counts", "train --replicas 2 --replica-group 1x", r"--replicas: is told by --rep"),
    Case(
        "no room for a stage",
        "train --stages 2 --device-memory-gb 0.00001",
        r"--device-memory-gb: stage \d of 2 .* needs .* MB, and cpu has 0",
    ),
    Case("report of nothing", "report nowhere", r"nowhere"),
    Case("evaluate's option", "evaluate x --crop 1", r"no option --crop; did you mean --crops\?"),
    Case("export's option", "export x --outptu y", r"no option --outptu; did you mean --output\?"),
    Case("status's option", "status --jsn", r"no option --jsn; did you mean --json\?"),
    Case("audit of nothing", "audit nowhere", r"nowhere: is no run's folder"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def command(text: str) -> list[str]:
    """A case's command line, on top of options that make it quick."""
    words = text.split()
    if words[0] != "train" or "--resume" in words:
        return words
    recipe = [words[1]] if words[1:] and not words[1].startswith("-") else []
    given = words[1 + len(recipe) :]
    options = [*SMALL, *DRAWN]
    for word in given:  # an option is given once
        if word.startswith("--") and word in options:
            at = options.index(word)
            del options[at : at + 2]
    return ["train", *recipe, *options, *given]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.make(here)
    before = sorted(here.rglob("*"))
    assert main(command(case.command)) == 2
    out, err = capsys.readouterr()
    assert re.search(case.says, err), err
    assert err.startswith("distbelief: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    left = [path for path in sorted(here.rglob("*")) if path not in before]
    passing = (".index", "__pycache__", ".pyc")
    assert not [path for path in left if not path.name.endswith(passing)]


def test_an_error_in_ones_own_model_has_its_place(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_code(here)
    assert main([*command("train --model mine:division")]) == 1
    err = capsys.readouterr().err
    assert re.search(r"ZeroDivisionError: division by zero \(.*mine\.py:\d+, in <lambda>\)", err)
    assert len(err.splitlines()) == 1
    deaths = [e for e in read_events(storage_at("run")) if e["kind"] == "replica_lost"]
    assert len(deaths) <= 2, "it was tried again, though it must fail again"


def test_a_value_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--replicas", "two"])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "replicas" in err
    assert "two" in err


# What concerns a run that is there


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["train", *SMALL, *DRAWN, "--snapshot-every", "8"]) == 0
    capsys.readouterr()
    return here / "run"


RESUMED = [
    ("--width 0.125", r"--width: the run has 0\.0625, and cannot go on with 0\.125; leave it out"),
    ("--model torchvision.models:resnet18", r"--model: the run has googlenet, and cannot"),
    ("--batch-size 16", r"--batch-size: the run has 8, and cannot go on with 16"),
    ("--n-push 2", r"--n-push: the run has 1, and cannot go on with 2"),
    ("--seed 1", r"--seed: the run has 0, and cannot go on with 1"),
    ("--lr 1.0", r"--lr: the run has 0\.01, and cannot go on with 1\.0"),
    ("--schedule fixed", r"--schedule: the run has polynomial, and cannot go on with fixed"),
    ("--image-size 32", r"--image-size: the run has 16, and cannot go on with 32"),
    ("--drawn-train 90", r"--drawn-train: the run has 80, and cannot go on with 90"),
    ("--epochs 2", r"--epochs: the run's polynomial schedule depends on the length of the run"),
    ("--momentum 0.5", r"--momentum: the run has 0\.7, and cannot go on with 0\.5"),
    ("--resume-snapshot 999", r"--resume-snapshot: .*run has no snapshot 999; it has \d+, \d+"),
    ("--resume-snapshot x", r"--resume-snapshot: must be the number of a snapshot, not 'x'"),
]


def test_a_resumed_run_cannot_become_another(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = (run / "config.json").read_bytes()
    for options, says in RESUMED:
        assert main(["train", "--resume", "run", *options.split()]) == 2, options
        err = capsys.readouterr().err
        assert re.search(says, err), err
        assert len(err.splitlines()) == 1
    assert main(["train", "cifar10", "--resume", "run"]) == 2
    assert "run is a run of quickstart, not of cifar10" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == record


def test_a_folder_that_holds_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, *DRAWN]) == 2
    said = rf"holds a run already; take another folder, or go on with it: --resume {run}\n"
    assert re.search(said, capsys.readouterr().err)


def test_no_snapshot_to_resume_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "snapshots")
    assert main(["train", "--resume", "run"]) == 2
    assert re.search(r"--resume: .*run has no snapshot to go on from", capsys.readouterr().err)


def test_a_damaged_snapshot(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, newest = sorted((run / "snapshots").iterdir())
    file = newest / "shard-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["train", "--resume", "run"]) == 2
    err = capsys.readouterr().err
    assert f"{file}: is damaged" in err
    assert f"--resume-snapshot {int(before.name)}" in err
    file.unlink()
    assert main(["train", "--resume", "run"]) == 2
    assert f"{file}: is missing" in capsys.readouterr().err
    (newest / "manifest.json").write_text("{")
    assert main(["train", "--resume", "run"]) == 2
    err = capsys.readouterr().err
    assert f"{newest / 'manifest.json'}: is damaged" in err
    assert f"--resume-snapshot {int(before.name)}" in err


def test_a_run_folder_in_use(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(storage_at("run")):
        assert main(["train", *SMALL, *DRAWN]) == 2
    assert re.search(
        r"--run-dir: .*/run is in use by process \d+ on .*; wait for its end .*, or take another",
        capsys.readouterr().err,
    )
    assert not (here / "run").exists()


def test_too_little_disk_for_the_first_snapshot(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert main(["train", *SMALL, *DRAWN]) == 2
    err = capsys.readouterr().err
    assert re.search(r"--run-dir: .*/run has 0 MB left, the first snapshot takes \d+ MB", err), err
    assert not (here / "run").exists()


def test_too_many_unreadable_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are skipped and counted; above a share of them the run stops, and names ten."""
    data = images(here / "data")
    for i in range(12):
        (data / "train" / "cat" / f"{i}.png").write_bytes(b"no picture")
    assert main(["train", *SMALL, "--data", "data"]) == 1
    err = capsys.readouterr().err
    assert len(re.findall(r"/data/train/cat/\d+\.png", err)) == 10
    assert re.search(r"\d+ of \d+ images could not be read: mend or remove them", err)
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "could not be read" in summary["cause"]


def test_odd_images_are_trained_on_or_skipped(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = images(here / "data")
    for i, (mode, suffix) in enumerate(
        [("CMYK", "jpg"), ("L", "png"), ("RGBA", "png"), ("I;16", "png"), ("1", "png")]
    ):
        if mode == "I;16":
            path = data / "train" / "cat" / f"odd{i}.{suffix}"
            Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16)).save(path)
        else:
            picture(data / "train" / "cat" / f"odd{i}.{suffix}", mode)
    picture(data / "train" / "dog" / "one.png", size=(1, 1))
    whole = (data / "train" / "dog" / "0.png").read_bytes()
    (data / "train" / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    header = Image.new("1", (10_000, 10_000))
    header.save(data / "train" / "dog" / "huge.png")
    assert main(["train", *SMALL, "--data", "data"]) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["examples_skipped"] == 2
    assert summary["examples_applied"] == 40 + 5 + 3
    assert "failure" not in {e["kind"] for e in read_events(storage_at("run"))}
