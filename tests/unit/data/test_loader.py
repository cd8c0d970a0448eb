import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distbelief.data.folder import ImageFolder
from distbelief.data.loader import Batch, BatchLoader, BatchRequest, sequential_batches
from distbelief.data.shapes import DrawnShapes
from distbelief.data.torchdata import source_of
from distbelief.data.transforms import EvalTransform, TrainTransform, Transform
from distbelief.errors import DataError

WAIT_S = 40.0


def request(*indices: int, epoch: int = 0) -> BatchRequest:
    return BatchRequest(epoch, np.array(indices, dtype=np.int64))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def script(folder: Path, source: str, main: str) -> Iterator["subprocess.Popen[str]"]:
    """A python process that runs ``main``, beside a module ``helper`` with ``source``."""
    (folder / "helper.py").write_text(source)
    (folder / "main.py").write_text(main)
    command = [sys.executable, str(folder / "main.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class BlockedSource(DrawnShapes):
    """Blocks at an image until it is let go."""

    def __init__(self) -> None:
        super().__init__("train", 10, 0, 16)
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def read(self, index: int) -> tuple[Image.Image, int]:
        self.reached.set()
        assert self.let_go.wait(WAIT_S)
        return super().read(index)


class BrokenSource(DrawnShapes):
    """Cannot be used: a mistake, not an unreadable image."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        raise ZeroDivisionError(index)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Six images, of which 1 and 4 cannot be read."""
    for index in range(6):
        path = tmp_path / "train" / f"class{index // 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (index, 0, 0)).save(path)
        if index == 1:
            path.write_bytes(path.read_bytes()[:60])
        if index == 4:
            path.write_bytes(b"not an image")
    return ImageFolder(tmp_path, "train")


def test_batch_holds_what_was_asked_for_in_its_order() -> None:
    source = DrawnShapes("train", 100, 0, 32)
    with BatchLoader(source, EvalTransform(32), 0, 0) as loader:
        batch = loader.submit(request(17, 3, 99, 3)).result(WAIT_S)
    assert batch.images.dtype == np.uint8
    assert batch.labels.dtype == batch.indices.dtype == np.int64
    assert batch.indices.tolist() == [17, 3, 99, 3]
    assert batch.labels.tolist() == [7, 3, 9, 3]
    assert batch.skipped == ()
    for row, index in enumerate([17, 3, 99, 3]):
        assert (batch.images[row] == np.asarray(source.read(index)[0])).all()


def test_unreadable_images_are_skipped_and_named(folder: ImageFolder) -> None:
    with BatchLoader(folder, EvalTransform(16), 0, 0) as loader:
        batch = loader.submit(request(5, 4, 3, 2, 1, 0)).result(WAIT_S)
    assert batch.indices.tolist() == [5, 3, 2, 0]
    assert batch.images[:, 0, 0, 0].tolist() == [5, 3, 2, 0]
    assert batch.labels.tolist() == [1, 1, 0, 0]
    assert batch.skipped == (4, 1)
    assert folder.name(4).endswith("train/class1/4.png")


@pytest.mark.parametrize("indices", [(4, 1), ()])
def test_batch_of_nothing(folder: ImageFolder, indices: tuple[int, ...]) -> None:
    with BatchLoader(folder, EvalTransform(16), 0, 0) as loader:
        batch = loader.submit(request(*indices)).result(WAIT_S)
    assert batch.images.shape == (0, 16, 16, 3)
    assert batch.labels.shape == batch.indices.shape == (0,)
    assert batch.skipped == indices


def batches(
    n_workers: int, source: ImageFolder | DrawnShapes, *requests: BatchRequest
) -> list[Batch]:
    with BatchLoader(source, TrainTransform(16), 7, n_workers) as loader:
        futures = [loader.submit(each) for each in requests]
        return [future.result(WAIT_S) for future in futures]


def test_images_are_the_same_whoever_decodes_them(folder: ImageFolder) -> None:
    first = [request(0, 1, 2), request(3, 4, 5), request(0, 2, 3, epoch=1)]
    for source in (folder, DrawnShapes("train", 6, 0, 24)):
        expected = batches(0, source, *first)
        for n_workers in (1, 3):
            for ours, theirs in zip(batches(n_workers, source, *first), expected, strict=True):
                assert (ours.images == theirs.images).all()
                assert ours.labels.tolist() == theirs.labels.tolist()
                assert ours.indices.tolist() == theirs.indices.tolist()
                assert ours.skipped == theirs.skipped


def test_augmentation_follows_the_example_not_the_batch() -> None:
    source = DrawnShapes("train", 50, 0, 24)
    every = list(range(50))
    together, turned, other = batches(
        0, source, request(*every), request(*every[::-1]), request(*every, epoch=1)
    )
    assert (together.images == turned.images[::-1]).all()
    assert (together.images != other.images).any()


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (8, 4), (3, 4), (0, 4)])
def test_sequential_batches_hold_each_image_once(n: int, batch_size: int) -> None:
    found = [batch.indices.tolist() for batch in sequential_batches(n, batch_size)]
    assert [index for batch in found for index in batch] == list(range(n))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)


def test_each_worker_is_up_when_the_loader_opens_and_gone_when_it_closes() -> None:
    with BatchLoader(DrawnShapes("train", 10, 0, 16), EvalTransform(16), 0, 3) as loader:
        pids = loader.pids
        assert len(set(pids)) == 3
        assert all(alive(pid) for pid in pids)
        futures = [loader.submit(request(*range(10))) for _ in range(200)]
    assert not any(alive(pid) for pid in pids)
    assert all(future.done() for future in futures)


def test_closing_cancels_the_pending_and_stops_between_two_images() -> None:
    source = BlockedSource()
    loader = BatchLoader(source, EvalTransform(16), 0, 0)
    with loader:
        running, pending = loader.submit(request(0, 1)), loader.submit(request(2))
        assert source.reached.wait(WAIT_S)
        # The read ends only once the loader is being closed: the pending one is cancelled by then.
        pending.add_done_callback(lambda _: source.let_go.set())
    assert pending.cancelled()
    assert isinstance(running.exception(), CancelledError)
    with pytest.raises(RuntimeError, match="not open"):
        loader.submit(request(0))
    with pytest.raises(RuntimeError, match="opens once"), loader:
        pass


def test_mistakes_are_not_skipped() -> None:
    with BatchLoader(BrokenSource("train", 10, 0, 16), EvalTransform(16), 0, 0) as loader:
        assert isinstance(loader.submit(request(0)).exception(WAIT_S), ZeroDivisionError)


class Pairs:
    """A data set of given items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def one_batch(*items: Any, transform: Transform | None = None) -> Batch:
    transform = transform or EvalTransform(16)
    with BatchLoader(source_of(Pairs(*items)), transform, 0, 0) as loader:
        return loader.submit(request(*range(len(items)))).result(WAIT_S)


def test_other_examples_than_images_are_stacked_as_they_are() -> None:
    vectors = [np.arange(3, dtype=np.float32) + i for i in range(4)]
    batch = one_batch(*[(vector, i / 4) for i, vector in enumerate(vectors)])
    assert (batch.images.dtype, batch.labels.dtype) == (np.float32, np.float32)
    assert (batch.images == np.stack(vectors)).all()
    assert batch.labels.tolist() == [0, 0.25, 0.5, 0.75]
    batch = one_batch((2.0, np.array([1, 2])), (3.0, np.array([3, 4])))
    assert batch.images.tolist() == [2, 3]
    assert batch.labels.tolist() == [[1, 2], [3, 4]]


def test_images_of_a_data_set_are_transformed() -> None:
    grey = np.full((20, 30), 9, dtype=np.uint8)
    batch = one_batch((grey, 3), (Image.fromarray(grey), 4))
    assert (batch.images.dtype, batch.images.shape) == (np.uint8, (2, 16, 16, 3))
    assert (batch.images == 9).all()
    assert batch.labels.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        (((np.zeros(3), 0), (np.zeros(4), 0)), r"the input of example 1 is \(4,\) float64, of oth"),
        (((np.zeros(3), 0), (np.zeros(3, "f4"), 0)), r"is \(3,\) float32, .*\(3,\) float64: all"),
        (((0.0, 0), (0.0, 0.5)), r"the target of example 1 is \(\) float32, of others .* int64"),
        (
            ((0.0, 0), (Image.new("L", (16, 16)), 0)),
            r"the input of example 1 is \(16, 16, 3\) uint8",
        ),
    ],
)
def test_examples_of_one_batch_are_of_one_shape_and_type(items: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        one_batch(*items)
    assert caught.value.path.endswith("Pairs (train)[1]")


class Twice:
    """Gives each image twice, as the crops of an evaluation do."""

    size = 16

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        once = EvalTransform(16)(image, rng)
        return np.stack([once, once[:, ::-1]])


def test_a_transform_decides_the_shape() -> None:
    with BatchLoader(DrawnShapes("train", 5, 0, 16), Twice(), 0, 0) as loader:
        batch = loader.submit(request(4, 0)).result(WAIT_S)
    assert batch.images.shape == (2, 2, 16, 16, 3)
    assert (batch.images[:, 0] == batch.images[:, 1, :, ::-1]).all()


HELPER = """
import os, random, signal, sys, time
import numpy as np
from distbelief.data.shapes import DrawnShapes

HANGING = os.path.join(os.path.dirname(__file__), "hanging")

class Spy(DrawnShapes):
    def read(self, index):
        found = sum(n in sys.modules for n in ("torch", "ray", "heavy"))
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return super().read(0)[0], found + 10 * ignores

class Hanging(DrawnShapes):
    def read(self, index):
        open(HANGING, "w").close()
        time.sleep(600)

class Suicidal(DrawnShapes):
    def read(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

class Unwelcome(DrawnShapes):
    def __setstate__(self, state):
        os._exit(3)

class Noise:
    def __len__(self):
        return 10
    def __getitem__(self, index):
        return [random.random(), np.random.random()], os.getpid()
"""
MAIN = """
import os, sys, time
import distbelief.data.loader
import heavy
import numpy as np
from distbelief.data.loader import BatchLoader, BatchRequest
from distbelief.data.transforms import EvalTransform
import helper

source = helper.{source}("train", 10, 0, 16)
with BatchLoader(source, EvalTransform(16), 0, 2) as loader:
    future = loader.submit(BatchRequest(0, np.arange(4)))
    {then}
"""


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    (tmp_path / "heavy.py").write_text("print('heavy', flush=True)\n")
    return tmp_path


def test_workers_import_neither_torch_nor_ray_nor_the_main_module(heavy: Path) -> None:
    main = MAIN.format(source="Spy", then="print(future.result(40).labels.tolist())")
    main += "print(__spec__, __file__.rpartition('/')[2])\n"
    with script(heavy, HELPER, main) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    # "heavy" once: by the script itself, whose own name is as it was afterwards.
    assert output.splitlines() == ["heavy", "[10, 10, 10, 10]", "None main.py"]
    assert process.returncode == 0


HANGS = "while not os.path.exists(helper.HANGING): time.sleep(0.01)"


@pytest.mark.parametrize(("source", "then"), [("Spy", "future.result(40)"), ("Hanging", HANGS)])
def test_workers_do_not_outlive_a_killed_parent(heavy: Path, source: str, then: str) -> None:
    then += "\n    print(*loader.pids, flush=True); time.sleep(600)"
    with script(heavy, HELPER, MAIN.format(source=source, then=then)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "heavy\n"
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        process.kill()
        wait_until(lambda: not any(alive(pid) for pid in pids))


def test_closing_ends_a_read_that_hangs(heavy: Path) -> None:
    then = HANGS + "\n    print(*loader.pids); distbelief.data.loader.GRACE_S = 0.3"
    main = MAIN.format(source="Hanging", then=then)
    main += "print(type(future.exception()).__name__)\n"
    with script(heavy, HELPER, main) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    _, pids, error = output.splitlines()
    assert error == "BrokenProcessPool"
    assert not any(alive(int(pid)) for pid in pids.split())
    assert process.returncode == 0


def test_killed_worker_breaks_its_batch_not_the_parent(heavy: Path) -> None:
    main = MAIN.format(source="Suicidal", then="error = future.exception(40)")
    with script(
        heavy, HELPER, main + "print(type(error).__module__, type(error).__name__)\n"
    ) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    name = f"{BrokenProcessPool.__module__} {BrokenProcessPool.__name__}"
    assert output.splitlines() == ["heavy", name]


def test_worker_that_does_not_start_is_told_at_once(heavy: Path) -> None:
    main = MAIN.format(source="Unwelcome", then="pass")
    main = main.replace(
        "with Batch", "from distbelief.errors import ProcessLostError\ntry:\n  with Batch"
    )
    main = main.replace("    future =", "    print('open'); future =")
    main += "except ProcessLostError as error: print(error)\n"
    with script(heavy, HELPER, main) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    assert output.splitlines()[1].startswith("a loader process was lost: it did not start;")


RANDOM = """
import os
import numpy as np
from distbelief.data.loader import BatchLoader, BatchRequest
from distbelief.data.torchdata import source_of
from distbelief.data.transforms import EvalTransform
import helper

class Own(helper.Noise):
    pass

class Unpicklable(helper.Noise):
    def __init__(self):
        self.transform = lambda value: value

Unpicklable.__module__ = "helper"
helper.Unpicklable = Unpicklable
for kind in (helper.Noise, Own, Unpicklable):
    for n_workers in (0, 2):
        with BatchLoader(source_of(kind()), EvalTransform(16), 7, n_workers) as loader:
            batch = loader.submit(BatchRequest(3, np.arange(4))).result(40)
            here = set(batch.labels.tolist()) == {os.getpid()}
            print(n_workers, here, len(loader.pids), batch.images.tobytes().hex())
"""


def test_a_data_set_of_a_script_is_read_in_a_thread_and_repeats(heavy: Path) -> None:
    with script(heavy, HELPER, RANDOM) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    lines = [line.rsplit(" ", 1) for line in output.splitlines()]
    thread, processes = "True 0", "False 2"
    assert [facts for facts, _ in lines] == [
        f"0 {thread}",
        f"2 {processes}",
        f"0 {thread}",
        f"2 {thread}",
        f"0 {thread}",
        f"2 {thread}",
    ]
    # The data set's own randomness is the example's, whoever reads it.
    assert len({images for _, images in lines}) == 1
    assert len(set(np.frombuffer(bytes.fromhex(lines[0][1])).tolist())) == 8
    assert process.returncode == 0


def test_importing_the_package_brings_neither_torch_nor_ray() -> None:
    code = "import sys, distbelief.data; print({'torch', 'ray', 'grpc'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
