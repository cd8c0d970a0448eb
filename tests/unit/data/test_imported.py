import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distbelief.config import DataConfig
from distbelief.data.dataset import open_data
from distbelief.data.imported import ImportedDataset, open_imported
from distbelief.errors import ConfigError

MODULE = """
import random

calls = []

class Numbers:
    def __init__(self, n, classes=("a", "b")):
        self.n, self.first = n, random.random()
        if classes:
            self.classes = classes
        calls.append(n)
    def __len__(self):
        return self.n
    def __getitem__(self, index):
        return float(index), self.first

def both(split):
    return {"train": Numbers(5), "val": Numbers(2)}[split]

def plain(split, root="data"):
    return Numbers(5, None) if split == "train" else None

def pair():
    return Numbers(5), Numbers(2)

def single():
    return Numbers(5)

def two_arguments(split, root):
    raise AssertionError

def raising(split):
    raise KeyError(split)

def pair_for_split(split):
    return Numbers(5), Numbers(2)

def triple():
    return 1, 2, 3

def nothing(split):
    return None

def number(split):
    return 7

constant = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_data.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    yield "own_data"
    for name in ("own_data", "own_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("function", "n_val"), [("both", 2), ("plain", None), ("pair", 2), ("single", None)]
)
def test_functions_of_each_kind(function: str, n_val: int | None, module: str) -> None:
    train, val = open_imported(f"{module}:{function}", 0)
    assert train.n_examples == 5
    assert (val and val.n_examples) == n_val
    assert train.name(3) == f"own_data:{function} (train)[3]"


def test_a_pickle_is_the_path_and_what_it_makes_is_the_same(module: str) -> None:
    train, val = open_imported(f"{module}:pair", 4)
    for source in (train, val):
        assert source is not None
        content = pickle.dumps(source)
        assert len(content) < 200
        again = pickle.loads(content)
        assert isinstance(again, ImportedDataset)
        assert again.digest == source.digest
        # Drawn while it was made.
        assert again.read(1) == source.read(1)
    assert open_imported(f"{module}:pair", 5)[0].read(1) != train.read(1)


def test_making_it_leaves_the_generators_alone(module: str) -> None:
    state = random.getstate()
    open_imported(f"{module}:both", 0)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("own_data", "'own_data' is not of the form package.module:function"),
        ("own_data:", "is not of the form"),
        (":both", "is not of the form"),
        ("own_data:a:b", "is not of the form"),
        (".own_data:both", "is not of the form"),
        ("__main__:both", "is a script, which other processes cannot import; name a module"),
        ("own_dat:both", "cannot import 'own_dat': No module named 'own_dat'"),
        ("own_broken:both", "cannot import 'own_broken': ZeroDivisionError: division by zero"),
        ("own_data:bth", "'own_data' has no 'bth'; did you mean 'both'?"),
        ("own_data:xyzzy", "'own_data' has no 'xyzzy'"),
        ("own_data:constant", "'own_data:constant' is not a function but of type int"),
        ("own_data:two_arguments", "must take one argument, 'train' or 'val', or none; it is (sp"),
        ("own_data:raising", "own_data:raising('train') raised KeyError: 'train'; mend it"),
        ("own_data:pair_for_split", "own_data:pair_for_split gave a tuple for 'train'"),
        ("own_data:triple", "own_data:triple gave 3 data sets; train and val are wanted"),
        ("own_data:nothing", "own_data:nothing gave None for train; it must give a data set"),
        ("own_data:number", "own_data:number (train) is no data set (int)"),
    ],
)
def test_what_is_wrong_is_named(path: str, problem: str, module: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_imported(path, 0)
    assert str(caught.value).startswith("--dataset: ")
    assert problem in str(caught.value)


def test_as_the_data_of_a_run(module: str) -> None:
    data = open_data(DataConfig(dataset=f"{module}:both"), 0)
    assert (data.classes, data.n_outputs) == (("a", "b"), 2)
    assert data.val is not None
    data = open_data(DataConfig(dataset=f"{module}:plain"), 0)
    assert (data.classes, data.n_outputs, data.val) == ((), 0, None)
    data = open_data(DataConfig(dataset=f"{module}:plain", classes=3), 0)
    assert (data.classes, data.n_outputs) == (("0", "1", "2"), 3)
    # Small images of other kinds are kept decoded; these may be random.
    data = open_data(DataConfig(dataset=f"{module}:plain", image_size=32), 0)
    assert isinstance(data.train, ImportedDataset)


def test_not_together_with_data() -> None:
    with pytest.raises(ConfigError, match="--dataset: cannot be given together with --data"):
        DataConfig(data="x", dataset="a:b")
