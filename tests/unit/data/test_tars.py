import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from distbelief.data import tars
from distbelief.data.images import UnreadableImage, decode
from distbelief.data.tars import TarShards, find_tars, index_of, open_tars
from distbelief.errors import DataError


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(labels: dict[int, str]) -> bytes:
    """Samples of WebDataset; their image's red is their number."""
    members: dict[str, bytes] = {}
    for number, label in labels.items():
        members[f"{number:04}.png"] = picture(number)
        members[f"{number:04}.cls"] = label.encode()
    return tar(members)


def folders(*paths: str) -> bytes:
    return tar({path: picture(number) for number, path in enumerate(paths)})


def put(*paths: Path, content: bytes = b"") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write(folder: Path, *contents: bytes) -> list[str]:
    paths = [folder / f"{number:03}.tar" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        put(path, content=content)
    return [str(path) for path in paths]


def reds(source: TarShards) -> list[int]:
    images = [decode(source.read(index)[0])[0] for index in range(source.n_examples)]
    return [int(np.asarray(image)[0, 0, 0]) for image in images]


def labels(source: TarShards) -> list[int]:
    return [source.read(index)[1] for index in range(source.n_examples)]


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Writes tars to a disk or behind a URL."""
    if request.param == "disk":
        yield lambda *contents: write(tmp_path, *contents)
        return
    system = fsspec.filesystem("memory")
    root = f"memory://{request.node.name.split('[')[0]}"

    def put_all(*contents: bytes) -> list[str]:
        for number, content in enumerate(contents):
            system.pipe_file(f"{root}/{number:03}.tar", content)
        return [f"{root}/{number:03}.tar" for number in range(len(contents))]

    yield put_all
    system.rm(root, recursive=True)


def test_samples_of_several_tars(place: Callable[..., list[str]]) -> None:
    paths = place(samples({5: "10", 6: "2"}), samples({7: "0"}))
    source = TarShards(paths)
    assert source.n_examples == 3
    assert source.classes == tuple(map(str, range(11)))
    assert labels(source) == [10, 2, 0]
    assert reds(source) == [5, 6, 7]
    assert source.name(2) == f"{paths[1]}/0007.png"
    sent = pickle.loads(pickle.dumps(source))
    assert reds(sent) == [5, 6, 7]
    assert sent.digest == source.digest


def test_a_tree_has_its_classes_by_bytes(place: Callable[..., list[str]]) -> None:
    source = TarShards(place(folders("x/b/1.png", "x/B/1.png", "x/10/1.png", "x/9/1.png")))
    assert source.classes == ("10", "9", "B", "b")
    assert labels(source) == [3, 2, 0, 1]


def test_indices_and_names_together_are_names(tmp_path: Path) -> None:
    source = TarShards(write(tmp_path, samples({0: "10", 1: "9"}), samples({2: "cat"})))
    assert source.classes == ("10", "9", "cat")
    assert labels(source) == [0, 1, 2]


@pytest.mark.parametrize("index", [-1, 2])
def test_no_such_index(index: int, tmp_path: Path) -> None:
    source = TarShards(write(tmp_path, samples({0: "0", 1: "1"})))
    for act in (source.read, source.name, source.label):
        with pytest.raises(IndexError, match=f"image {index} of 2"):
            act(index)


def test_labels_of_validation_are_those_of_training(tmp_path: Path) -> None:
    train = write(tmp_path / "a", folders("x/cat/1.png", "x/dog/1.png", "x/emu/1.png"))
    source, val = open_tars(train, write(tmp_path / "b", folders("y/emu/1.png", "y/cat/1.png")))
    assert val is not None
    assert val.classes == source.classes == ("cat", "dog", "emu")
    assert labels(val) == [2, 0]
    assert open_tars(train, [])[1] is None


@pytest.mark.parametrize(
    ("train", "val", "name"),
    [
        (folders("x/cat/1.png"), folders("x/cat/1.png", "x/dog/1.png"), "dog"),
        (samples({0: "3"}), samples({0: "4"}), "4"),
        (samples({0: "3"}), samples({0: "cat"}), "cat"),
        (samples({0: "cat"}), samples({0: "0"}), "0"),
    ],
)
def test_a_class_that_training_lacks(train: bytes, val: bytes, name: str, tmp_path: Path) -> None:
    last = write(tmp_path / "val", val)
    with pytest.raises(
        DataError, match=f"the class '{name}', which the training .* lack"
    ) as caught:
        open_tars(write(tmp_path / "train", train), last)
    assert caught.value.path == last[0]


SIZES = (30, 1, 50, 19)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> TarShards:
    """A hundred examples in four tars."""
    contents = [samples(dict.fromkeys(range(size), "0")) for size in SIZES]
    return TarShards(write(tmp_path_factory.mktemp("large"), *contents))


def test_an_epoch_has_each_example_once_and_one_tar_after_the_other(large: TarShards) -> None:
    tar_of = np.repeat(range(4), SIZES)
    seen = set()
    for epoch in range(40):
        order = large.epoch_order(5, epoch)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(100))
        changes = np.flatnonzero(np.diff(tar_of[order]))
        assert len(changes) == 3
        seen.add(tuple(tar_of[order][[0, *(changes + 1)]].tolist()))
    # Of 24 orders of four tars.
    assert len(seen) > 12


def test_members_are_mixed_within_their_tar_anew_each_epoch(large: TarShards) -> None:
    first, second = (
        [i for i in large.epoch_order(5, epoch).tolist() if 31 <= i < 81] for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(31, 81))
    assert len({tuple(first), tuple(second), tuple(sorted(first))}) == 3


def test_the_order_is_a_function_of_seed_and_epoch(large: TarShards) -> None:
    again = pickle.loads(pickle.dumps(large))
    assert (again.epoch_order(5, 3) == large.epoch_order(5, 3)).all()
    assert (large.epoch_order(6, 3) != large.epoch_order(5, 3)).any()


def test_the_digest_follows_the_list(tmp_path: Path) -> None:
    def digest(folder: str, *contents: bytes) -> str:
        return TarShards(write(tmp_path / folder, *contents)).digest

    whole = digest("a", samples({0: "0", 1: "1"}), samples({2: "0"}))
    # Not of where they lie, nor of when they were made.
    assert digest("b", samples({0: "0", 1: "1"}), samples({2: "0"})) == whole
    others = [
        digest("c", samples({0: "0", 1: "1", 2: "0"})),
        digest("d", samples({0: "1", 1: "0"}), samples({2: "0"})),
        digest("e", samples({0: "0", 1: "1"}), samples({3: "0"})),
        digest("f", samples({2: "0"}), samples({0: "0", 1: "1"})),
    ]
    assert len({whole, *others}) == 5


def test_an_index_is_made_once(
    place: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = place(samples({0: "0"}))
    first = index_of(path)

    def never(*arguments: object) -> None:
        raise AssertionError(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tars, "build_index", never)
        assert (index_of(path).offsets == first.offsets).all()
    # A changed tar is indexed again.
    place(samples({0: "0", 1: "1"}))
    assert len(index_of(path).offsets) == 2


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    (path,) = write(tmp_path, samples({0: "0"}))
    TarShards([path])
    saved = tmp_path / "000.tar.index"
    whole = saved.read_bytes()
    saved.write_bytes(whole[:50])
    assert TarShards([path]).n_examples == 1
    assert saved.read_bytes() == whole


def test_a_tar_that_was_cut_after_its_index_was_made(tmp_path: Path) -> None:
    (path,) = write(tmp_path, samples({0: "0", 1: "1"}))
    source = TarShards([path])
    os.truncate(path, 2048)
    decode(source.read(0)[0])
    with pytest.raises(UnreadableImage, match=r"0001.png: lies beyond the end of its tar"):
        source.read(1)
    Path(path).unlink()
    fresh = pickle.loads(pickle.dumps(source))
    with pytest.raises(UnreadableImage, match=r"0000.png: cannot be read \(.*No such file"):
        fresh.read(0)


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["train/b.tar", "train/a.tar"], ["train/a.tar", "train/b.tar"], []),
        (["train/a.tar", "val/b.TAR"], ["train/a.tar"], ["val/b.TAR"]),
        (
            ["train-0.tar", "train-1.tar", "val-0.tar"],
            ["train-0.tar", "train-1.tar"],
            ["val-0.tar"],
        ),
        (["x-train-0.tar", "x-val-0.tar", "x.tar"], ["x-train-0.tar"], ["x-val-0.tar"]),
        (["trainval-0.tar"], ["trainval-0.tar"], []),
        (["train/a.tar", "train/notes.txt", "val-0.tar"], ["train/a.tar"], ["val-0.tar"]),
        (["train/a.tar", "train-0.tar"], ["train/a.tar"], []),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_which_tars_are_meant(
    names: list[str], train: list[str], val: list[str], remote: bool, tmp_path: Path
) -> None:
    put(*[tmp_path / name for name in names])
    # The file system of local files behind a URL's face.
    root = f"local://{tmp_path}" if remote else str(tmp_path)
    expected = [f"{root}/{name}" for name in train], [f"{root}/{name}" for name in val]
    assert find_tars(root) == expected
    assert find_tars(f"file://{tmp_path}/") == tuple(
        [path.replace("local://", "") for path in paths] for paths in expected
    )


def test_one_tar_of_both_splits_is_not_trained_on(tmp_path: Path) -> None:
    paths = write(tmp_path, folders("x/train/cat/1.png", "x/val/cat/2.png"))
    with pytest.raises(DataError, match="holds both train/ and val/, which would all be trained"):
        open_tars(paths, [])
    assert open_tars(paths, paths)[0].n_examples == 2


def test_one_tar_is_for_training(tmp_path: Path) -> None:
    put(tmp_path / "x.tar")
    assert find_tars(str(tmp_path / "x.tar")) == ([str(tmp_path / "x.tar")], [])
    assert find_tars("https://host/x.tar?signature=1") == (["https://host/x.tar?signature=1"], [])


@pytest.mark.parametrize(
    "names",
    [
        ["train/cat/1.png", "val/cat/1.png"],
        ["train/cat/1.png", "old-train-1.tar"],  # class folders come first
        ["val/a.tar"],
        ["x.tar"],
        [],
    ],
)
def test_no_place_of_tars(names: list[str], tmp_path: Path) -> None:
    put(*[tmp_path / name for name in names])
    assert find_tars(str(tmp_path)) is None
    assert find_tars(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("names", "data", "problem"),
    [
        (["train/a.tar", "train/cat/1.png"], "", "train: has both tars and class folders"),
        (["train/a.tar.gz"], "", "a.tar.gz: is compressed, .*unpack it to a plain .tar"),
        (["train/a.tar", "train/b.tgz"], "", "b.tgz: is compressed"),
        (["train-0.tar", "val-0.tar.zst"], "", "val-0.tar.zst: is compressed"),
        (["cifar.tgz"], "cifar.tgz", "cifar.tgz: is compressed"),
    ],
)
def test_what_cannot_be_meant(names: list[str], data: str, problem: str, tmp_path: Path) -> None:
    put(*[tmp_path / name for name in names])
    with pytest.raises(DataError, match=problem):
        find_tars(str(tmp_path / data))


def test_a_server_without_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(io.BytesIO):
        def seek(self, *where: int) -> int:
            raise ValueError("no range requests")

    (path,) = write(tmp_path, samples({0: "0"}))
    monkeypatch.setattr(tars, "opened", lambda path: Whole())
    with pytest.raises(DataError, match=r"000.tar: cannot be read \(no range requests\)"):
        TarShards([path])


def test_a_url_without_tars() -> None:
    with pytest.raises(DataError, match="memory://nothing: has no training tars: --data wants"):
        find_tars("memory://nothing")
