"""A shard's state from the files of however many shards."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distbelief.config import AveragingConfig, OptimizerConfig
from distbelief.errors import DataError
from distbelief.layout import Segment
from distbelief.server.account import Account
from distbelief.server.applied import ItemSet
from distbelief.server.pushlog import read_log
from distbelief.server.restore import Restore, Restored, restore
from distbelief.server.shard import Shard
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import digest, file_name, image, snapshot_folder
from distbelief.storage import LocalStorage, Storage
from distbelief.types import Push, PushStatus, ShardFile, ShardState, Version, Weights

NUMBER = 3
COUNTS = {"pending_pushes": 1, "examples_at_update": 30, "weight": 7}


def ranges(size: int, n_shards: int) -> list[tuple[int, int]]:
    cuts = [i * size // n_shards for i in range(n_shards + 1)]
    return [(cuts[i], cuts[i + 1]) for i in range(n_shards)]


def write(
    storage: Storage,
    shard: int,
    n_shards: int,
    begin: int,
    tensors: dict[str, torch.Tensor],
    account: Account,
    counts: dict[str, int] | None = None,
) -> ShardFile:
    about = {"account": account.to_dict(), "average": COUNTS if counts is None else counts}
    content = image(tensors, about)
    name = file_name(shard, n_shards)
    storage.write(f"{snapshot_folder(NUMBER)}/{name}", content)
    state = ShardState(
        shard=shard,
        incarnation=2,
        begin=begin,
        end=begin + tensors["parameters"].numel(),
        loaded=True,
        clock=account.clock,
        examples=account.examples,
        skipped=account.skipped,
        applied=account.applied.intervals,
        set_aside=account.set_aside,
        repeated=account.repeated,
    )
    return ShardFile(
        name=name, nbytes=len(content), sha256=digest(content), n_shards=n_shards, state=state
    )


def account_of(shard: int = 0, **changes: Any) -> Account:
    fields: dict[str, Any] = {
        "clock": 4,
        "examples": 39,
        "skipped": 1,
        "rate": 0.5,
        "expected_staleness": 1.0 / (3 + shard),
        "applied": ItemSet(((0, 3), (5, 6))),
        "set_aside": {3: "norm"},
        "repeated": 1 + shard,
        "refused": Counter({"stale": 2 + shard}),
        "staleness": Counter({0: 3, 1 + shard: 1}),
    }
    return Account(**{**fields, **changes})


def overlapping(files: Sequence[ShardFile], begin: int, end: int) -> Restore:
    chosen = [f for f in files if f.state.begin < end and f.state.end > begin]
    return Restore(NUMBER, tuple(chosen))


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 40), data=st.data())
def test_any_number_of_shards_from_any_other(size: int, data: st.DataObject) -> None:
    n_old, n_new = (data.draw(st.integers(1, size), label=name) for name in ("old", "new"))
    whole = {name: torch.randn(size) for name in ("parameters", "momentum", "average")}
    with tempfile.TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        files = [
            write(
                storage,
                shard,
                n_old,
                begin,
                {name: vector[begin:end] for name, vector in whole.items()},
                account_of(shard),
            )
            for shard, (begin, end) in enumerate(ranges(size, n_old))
        ]
        parts: list[Restored] = []
        for begin, end in ranges(size, n_new):
            found = restore(storage, overlapping(files, begin, end), begin, end)
            for name, vector in whole.items():
                assert torch.equal(found.tensors[name], vector[begin:end])
            parts.append(found)
    for found in parts:
        account = found.account
        assert (account.clock, account.examples, account.skipped) == (4, 39, 1)
        assert (account.applied, account.set_aside) == (ItemSet(((0, 3), (5, 6))), {3: "norm"})
        assert found.average == COUNTS
    # What is counted by the shard is counted once.
    olds = [account_of(shard) for shard in range(n_old)]
    news = [found.account for found in parts]
    assert sum(a.repeated for a in news) == sum(a.repeated for a in olds)
    for kind in ("refused", "staleness"):
        counts: list[Counter[Any]] = [Counter(), Counter()]
        for total, accounts in zip(counts, (olds, news), strict=True):
            for account in accounts:
                total.update(getattr(account, kind))
        assert counts[0] == counts[1]
    if n_old == n_new:
        assert news == olds


def test_the_same_range_is_exactly_what_was_saved(storage: Storage) -> None:
    account = account_of(applied=ItemSet(((2, 3),)), clock=1, set_aside={7: "a", 9: "b"})
    vectors = {"parameters": torch.randn(5), "momentum": torch.randn(5)}
    file = write(storage, 1, 2, 5, vectors, account)
    found = restore(storage, Restore(NUMBER, (file,)), 5, 10)
    assert found.account == account
    assert found.average == COUNTS
    assert found.tensors.keys() == vectors.keys()
    assert all(torch.equal(found.tensors[name], vectors[name]) for name in vectors)


def test_a_part_of_a_shard_takes_what_is_counted_if_it_has_its_first_element(
    storage: Storage,
) -> None:
    file = write(storage, 0, 1, 0, {"parameters": torch.arange(4.0)}, account_of())
    first, second = (restore(storage, Restore(NUMBER, (file,)), *r) for r in ((0, 2), (2, 4)))
    assert first.account == account_of()
    assert second.account == replace(
        account_of(), repeated=0, refused=Counter(), staleness=Counter()
    )
    assert second.tensors["parameters"].tolist() == [2.0, 3.0]


def test_counts_of_a_whole_shard_are_those_of_the_largest_part(storage: Storage) -> None:
    files = [
        write(storage, 0, 2, 0, {"parameters": torch.zeros(4)}, account_of(0), {"weight": 1}),
        write(storage, 1, 2, 4, {"parameters": torch.zeros(4)}, account_of(1), {"weight": 2}),
    ]
    for (begin, end), largest in (((0, 7), 0), ((1, 8), 1), ((3, 8), 1)):
        found = restore(storage, overlapping(files, begin, end), begin, end)
        assert found.account.expected_staleness == account_of(largest).expected_staleness
        assert found.average == {"weight": largest + 1}


def test_items_applied_on_one_and_set_aside_on_another_count_as_applied(storage: Storage) -> None:
    one = account_of(applied=ItemSet(((0, 3),)), clock=3, set_aside={3: "norm", 4: "both"})
    other = account_of(applied=ItemSet(((1, 4),)), clock=3, set_aside={0: "norm", 4: "both"})
    files = [
        write(storage, 0, 2, 0, {"parameters": torch.zeros(2)}, one),
        write(storage, 1, 2, 2, {"parameters": torch.zeros(2)}, other),
    ]
    found = restore(storage, Restore(NUMBER, tuple(files)), 0, 4)
    assert (found.account.applied, found.account.clock) == (ItemSet(((0, 4),)), 4)
    assert found.account.set_aside == {4: "both"}


@pytest.mark.parametrize("begun", [0, 1])
def test_where_one_shard_has_no_average_yet_its_parameters_stand_for_it(
    begun: int, storage: Storage
) -> None:
    files = []
    for shard in (0, 1):
        vectors = {"parameters": torch.full((3,), float(shard))}
        if shard == begun:
            vectors["average"] = torch.full((3,), 5.0)
        files.append(write(storage, shard, 2, 3 * shard, vectors, account_of()))
    found = restore(storage, Restore(NUMBER, tuple(files)), 0, 6)
    expected = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert found.tensors["parameters"].tolist() == expected
    expected[3 * begun : 3 * begun + 3] = [5.0] * 3
    assert found.tensors["average"].tolist() == expected


def test_what_the_log_says_of_its_sources() -> None:
    state = replace_state(shard=1, incarnation=4, clock=9)
    file = ShardFile(name="a", nbytes=1, sha256="", n_shards=3, state=state)
    assert Restore(2, (file,)).sources == ((1, 3, 4, 9),)


def replace_state(**changes: Any) -> ShardState:
    fields: dict[str, Any] = {
        "shard": 0,
        "incarnation": 1,
        "begin": 0,
        "end": 4,
        "loaded": True,
        "clock": 0,
        "examples": 0,
        "skipped": 0,
        "applied": (),
        "set_aside": {},
        "repeated": 0,
    }
    return ShardState(**{**fields, **changes})


def test_a_damaged_file_is_named(storage: Storage) -> None:
    file = write(storage, 0, 1, 0, {"parameters": torch.zeros(2)}, account_of())
    storage.remove(f"{snapshot_folder(NUMBER)}/{file.name}")
    with pytest.raises(DataError, match=f"{file.name}: is missing"):
        restore(storage, Restore(NUMBER, (file,)), 0, 2)


# Shards that go on

SIZE, SEGMENTS = 12, (Segment(0, 5, 1.0, 1.0), Segment(5, 12, 2.0, 0.0))


def segments(begin: int, end: int) -> tuple[Segment, ...]:
    parts = [
        Segment(max(s.begin, begin) - begin, min(s.end, end) - begin, s.rate, s.decay)
        for s in SEGMENTS
    ]
    return tuple(s for s in parts if s.begin < s.end)


class Fleet:
    """All shards of a run, as one vector."""

    def __init__(self, stack: ExitStack, make_spec: Callable[..., ShardSpec], **fields: Any):
        n_shards, restored = fields.pop("n_shards"), fields.pop("files", None)
        self.incarnation = fields.get("incarnation", 1)
        self.shards = []
        for index, (begin, end) in enumerate(ranges(SIZE, n_shards)):
            spec = make_spec(
                end - begin,
                begin=begin,
                index=index,
                n_shards=n_shards,
                segments=segments(begin, end),
                restore=None if restored is None else overlapping(restored, begin, end),
                **fields,
            )
            self.shards.append(stack.enter_context(Shard(spec)))

    def load(self, values: torch.Tensor) -> None:
        for shard in self.shards:
            shard.load(values[shard.spec.begin : shard.spec.end])

    def push(self, make_push: Callable[..., Push], item: int) -> list[PushStatus]:
        generator = torch.Generator().manual_seed(item)
        gradient = torch.randn(SIZE, generator=generator)
        return [
            shard.push(
                make_push(
                    item,
                    gradient[shard.spec.begin : shard.spec.end].clone(),
                    begin=shard.spec.begin,
                    incarnation=self.incarnation,
                    base=Version(self.incarnation, shard.version.clock),
                    rate=0.1,
                )
            ).status
            for shard in self.shards
        ]

    def fetch(self, weights: Weights) -> torch.Tensor:
        out = torch.empty(SIZE)
        for shard in self.shards:
            begin, end = shard.spec.begin, shard.spec.end
            shard.fetch(out[begin:end], begin=begin, weights=weights)
        return out

    def save(self) -> list[ShardFile]:
        return [shard.save(NUMBER, (), 0.0) for shard in self.shards]


@pytest.mark.parametrize("average", ["exponential", "uniform", "none"])
@pytest.mark.parametrize("rule", ["momentum", "nesterov", "adagrad"])
@pytest.mark.parametrize(("n_old", "n_new"), [(1, 1), (2, 3), (3, 2), (4, 1), (1, 5)])
def test_a_run_that_goes_on_equals_one_that_was_not_interrupted_bit_for_bit(
    n_old: int,
    n_new: int,
    rule: Any,
    average: Any,
    make_spec: Callable[..., ShardSpec],
    make_push: Callable[..., Push],
    tmp_path: Path,
) -> None:
    common: dict[str, Any] = {
        "optimizer": OptimizerConfig(rule=rule, momentum=0.5, kernel="unfused"),
        "averaging": AveragingConfig(average=average, average_every=2),
        "total_examples": 100,
    }
    with ExitStack() as stack:
        storage = LocalStorage(tmp_path / "never")
        through = Fleet(stack, make_spec, n_shards=1, storage=storage, **common)
        storage = LocalStorage(tmp_path / "resumed")
        old = Fleet(stack, make_spec, n_shards=n_old, storage=storage, **common)
        for fleet in (through, old):
            fleet.load(torch.linspace(-1, 1, SIZE))
            for item in range(7):
                fleet.push(make_push, item)
        files = old.save()
        old.push(make_push, 7)  # it is forgotten
        new = Fleet(
            stack,
            make_spec,
            n_shards=n_new,
            storage=storage,
            incarnation=2,
            files=files,
            **common,
        )
        assert new.push(make_push, 3) == n_new * [PushStatus.ALREADY_APPLIED]
        for fleet in (through, new):
            for item in range(7, 10):
                fleet.push(make_push, item)
        for weights in (Weights.LATEST, Weights.AVERAGED):
            assert torch.equal(through.fetch(weights), new.fetch(weights))
        assert [shard.state().applied for shard in new.shards] == n_new * [((0, 10),)]
        assert {shard.version for shard in new.shards} == {Version(2, 10)}


def test_the_log_of_a_restored_shard_says_what_it_rests_on(
    make_spec: Callable[..., ShardSpec], make_push: Callable[..., Push], tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path)
    with ExitStack() as stack:
        old = Fleet(stack, make_spec, n_shards=3, storage=storage)
        old.load(torch.zeros(SIZE))
        for item in (4, 2):
            old.push(make_push, item)
        files = old.save()
        new = Fleet(stack, make_spec, n_shards=2, storage=storage, incarnation=2, files=files)
        new.push(make_push, 5)
    header, entries = read_log(storage, "shard-00001-of-00002.0002.jsonl")
    assert (header.snapshot, header.clock) == (NUMBER, 2)
    assert header.sources == ((1, 3, 1, 2), (2, 3, 1, 2))
    assert [(entry.clock, entry.item) for entry in entries] == [(3, 5)]  # type: ignore[union-attr]


def test_a_restored_shard_is_loaded_and_takes_no_initial_values(
    make_spec: Callable[..., ShardSpec], tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path)
    with ExitStack() as stack:
        old = Fleet(stack, make_spec, n_shards=1, storage=storage)
        old.load(torch.ones(SIZE))
        files = old.save()
        new = Fleet(stack, make_spec, n_shards=1, storage=storage, incarnation=2, files=files)
        assert new.shards[0].state().loaded
        assert torch.equal(new.fetch(Weights.LATEST), torch.ones(SIZE))


def test_a_shard_whose_file_is_damaged_makes_no_log(
    make_spec: Callable[..., ShardSpec], tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path)
    with ExitStack() as stack:
        old = Fleet(stack, make_spec, n_shards=1, storage=storage)
        old.load(torch.ones(SIZE))
        (file,) = old.save()
        storage.write(f"{snapshot_folder(NUMBER)}/{file.name}", b"")
        with pytest.raises(DataError):
            Fleet(stack, make_spec, n_shards=1, storage=storage, incarnation=2, files=[file])
    assert storage.logs("pushes") == ["shard-00000-of-00001.0001.jsonl"]
