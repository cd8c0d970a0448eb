"""The audit, on small run folders made by hand: clean ones, and one flaw at a time."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distbelief.audit import audit
from distbelief.config import ScheduleConfig, TrainConfig
from distbelief.coordinator.schedule import Schedule
from distbelief.errors import DataError
from distbelief.items import ItemPlan

# Two epochs of 25 examples in items of 10, 10 and 5; the rate halves after each.
PLAN = {"n_examples": 25, "batch_size": 10, "n_push": 1, "n_items": 6}
SCHEDULE = ScheduleConfig(lr=0.5, schedule="step", step_epochs=1, step_factor=0.5)
EXAMPLES = 4 * [10, 10, 5]
RATES = [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.0625, 0.0625, 0.0625]
LOGS = ["shard-00000-of-00002.0001.jsonl", "shard-00001-of-00002.0001.jsonl"]

Log = list[dict[str, Any]]


def header(shard: int, **changes: Any) -> dict[str, Any]:
    return {
        "shard": shard,
        "n_shards": 2,
        "begin": [0, 50][shard],
        "end": [50, 100][shard],
        "incarnation": 1,
        "snapshot": None,
        "clock": 0,
        **changes,
    }


def push(item: int, clock: int, **changes: Any) -> dict[str, Any]:
    return {
        "item": item,
        "clock": clock,
        "base": [1, max(0, clock - 2)],
        "rate": RATES[item],
        "replica": item % 2,
        "examples": EXAMPLES[item],
        "skipped": [],
        **changes,
    }


def log(shard: int, order: list[int]) -> Log:
    return [header(shard), *(push(item, clock) for clock, item in enumerate(order, start=1))]


def clean_logs() -> list[Log]:
    return [log(0, [0, 1, 2, 3, 4, 5]), log(1, [1, 0, 2, 4, 3, 5])]


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder; a log is a list of lines, or its text."""

    def write(
        logs: list[Log | str],
        *,
        status: str | None = "finished",
        n_shards: int = 2,
        n_items: int = 6,
        events: list[dict[str, Any]] | None = None,
        **ended: Any,
    ) -> Path:
        config = TrainConfig(schedule=SCHEDULE).to_dict()
        config["cluster"]["shards"] = n_shards
        record = {"config": config, "plan": {**PLAN, "n_items": n_items}, "parameters": 100}
        (tmp_path / "config.json").write_text(json.dumps(record))
        if status is not None:
            (tmp_path / "summary.json").write_text(json.dumps({"status": status, **ended}))
        if events is not None:
            lines = "".join(json.dumps(event) + "\n" for event in events)
            (tmp_path / "events.jsonl").write_text(lines)
        folder = tmp_path / "pushes"
        folder.mkdir()
        for name, lines in zip(LOGS, logs, strict=False):
            if not isinstance(lines, str):
                lines = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / name).write_text(lines)
        return tmp_path

    return write


WriteRun = Callable[..., Path]


def test_the_rates_here_are_the_schedules() -> None:
    schedule = Schedule(SCHEDULE, ItemPlan(**{**PLAN, "n_items": 12}))
    assert [schedule.rate(item) for item in range(12)] == RATES
    assert [schedule.plan.item(item).n_examples for item in range(12)] == EXAMPLES


def test_a_clean_run(write_run: WriteRun) -> None:
    result = audit(write_run(clean_logs()))
    assert result.clean
    assert (result.n_shards, result.pushes, result.items, result.examples) == (2, 12, 6, 50)
    assert (result.skipped, result.set_aside, result.epochs_finished) == (0, 0, 2)


def test_a_clean_run_of_one_shard(write_run: WriteRun) -> None:
    lines = log(0, [0, 1, 2, 3, 4, 5])
    lines[0] = header(0, n_shards=1, end=100)
    result = audit(write_run([lines], n_shards=1))
    assert result.clean
    assert (result.n_shards, result.pushes, result.items) == (1, 6, 6)


@pytest.mark.parametrize("status", [None, "running", "interrupted", "failed"])
def test_a_run_that_is_not_finished_may_lack_items(status: str | None, write_run: WriteRun) -> None:
    result = audit(write_run([log(0, [0, 2, 1, 3]), log(1, [0, 1, 2])], status=status))
    assert result.clean
    assert (result.pushes, result.items, result.examples) == (7, 3, 25)
    assert result.epochs_finished == 1


def test_a_run_that_has_only_begun(write_run: WriteRun) -> None:
    result = audit(write_run([[header(0)], [header(1)]], status=None))
    assert result.clean
    assert (result.pushes, result.items, result.examples, result.epochs_finished) == (0, 0, 0, 0)


def test_skipped_examples_are_accounted_for(write_run: WriteRun) -> None:
    logs = clean_logs()
    logs[0][2] = push(1, 2, examples=8, skipped=[11, 17])
    logs[1][1] = push(1, 1, examples=8, skipped=[11, 17])
    result = audit(write_run(logs))
    assert result.clean
    assert (result.examples, result.skipped) == (48, 2)


def test_an_item_set_aside_everywhere_is_accounted_for(write_run: WriteRun) -> None:
    aside = {"set_aside": 4, "reason": "not_finite, 3 times"}
    logs = [log(0, [0, 1, 2, 3, 5]), log(1, [1, 0, 2, 3, 5])]
    logs[0].append(aside)
    logs[1].insert(3, aside)
    result = audit(write_run(logs))
    assert result.clean
    assert (result.items, result.examples, result.set_aside) == (5, 40, 1)
    assert result.epochs_finished == 2


def test_an_item_applied_here_and_set_aside_there_is_accounted_for(write_run: WriteRun) -> None:
    logs = [log(0, [0, 1, 2, 3, 4, 5]), log(1, [1, 0, 2, 3, 5])]
    logs[1].append({"set_aside": 4, "reason": "norm, 3 times"})
    result = audit(write_run(logs))
    assert result.clean
    assert (result.items, result.set_aside) == (5, 1)


def epochs(*finished: int) -> list[dict[str, Any]]:
    """Events of a run that says which epochs are done."""
    first = {"t": 0.1, "kind": "replica_joined", "replica": 0}
    return [first, *({"t": 1.0, "kind": "epoch", "epoch": epoch} for epoch in finished)]


MISSING = f"{LOGS[1]}: item {{}} was not applied, though it must have been"


@pytest.mark.parametrize("status", [None, "interrupted", "failed"])
@pytest.mark.parametrize(
    ("says", "has", "missing"),
    [
        ([], [], None),
        ([], [0, 1], None),
        ([1], [0, 1, 2], None),
        ([1], [0, 2], 1),
        ([1], [0, 1], 2),
        ([1], [], 0),
        ([1, 2], [0, 1, 2, 3, 4, 5], None),
        ([1, 2], [0, 1, 2, 3, 5], 4),
    ],
)
def test_an_epoch_that_the_events_call_done_must_be(
    says: list[int], has: list[int], missing: int | None, status: str | None, write_run: WriteRun
) -> None:
    logs = [log(0, [0, 1, 2, 3, 4, 5][: 3 * max(1, len(says))]), log(1, has)]
    result = audit(write_run(logs, status=status, events=epochs(*says)))
    expected = None if missing is None else MISSING.format(missing)
    assert (str(result.counter_example) if result.counter_example else None) == expected


def test_an_item_set_aside_counts_in_an_epoch_that_is_called_done(write_run: WriteRun) -> None:
    logs = [log(0, [0, 2]), log(1, [2, 0])]
    for lines in logs:
        lines.append({"set_aside": 1, "reason": "norm, 3 times"})
    result = audit(write_run(logs, status=None, events=epochs(1)))
    assert result.clean
    assert (result.set_aside, result.epochs_finished) == (1, 1)


def test_an_events_file_that_was_cut_short_says_what_it_says(write_run: WriteRun) -> None:
    run = write_run([log(0, [0, 1, 2]), log(1, [0, 1, 2])], status=None, events=epochs(1, 2))
    whole = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(whole[:-2])  # epoch 2 was not told to the end
    assert audit(run).clean
    (run / "events.jsonl").write_text(whole)
    first = audit(run).counter_example
    assert str(first) == f"{LOGS[0]}: item 3 was not applied, though it must have been"


@pytest.mark.parametrize(
    ("latest", "missing"),
    [
        # Items of epochs 0 and 1 are leased from the start; one of epoch 2 only when epoch 0 is
        # done, one of epoch 3 when epochs 0 and 1 are.
        (5, None),
        (6, 0),
        (8, 0),
        (9, 0),
    ],
)
def test_an_item_applied_says_that_the_epochs_before_its_last_two_are_done(
    latest: int, missing: int | None, write_run: WriteRun
) -> None:
    logs = [log(0, [*range(6), latest] if latest > 5 else [*range(6)]), log(1, [1, 2, latest])]
    result = audit(write_run(logs, status=None, n_items=12))
    expected = None if missing is None else MISSING.format(missing)
    assert (str(result.counter_example) if result.counter_example else None) == expected


@pytest.mark.parametrize(
    ("latest", "has", "clean"),
    [
        (8, [0, 1, 2], True),
        (8, [0, 1, 2, 5], True),
        (9, [0, 1, 2, 3, 4], False),
        (9, [0, 1, 2, 3, 4, 5], True),
    ],
)
def test_the_epochs_from_which_leases_come_may_lack_items(
    latest: int, has: list[int], clean: bool, write_run: WriteRun
) -> None:
    logs = [log(0, [*range(6), latest]), log(1, [*has, latest])]
    result = audit(write_run(logs, status=None, n_items=12))
    assert result.clean == clean


@pytest.mark.parametrize("earlier", [0, 1])
def test_of_a_run_that_goes_on_one_log_may_be_read_long_before_another(
    earlier: int, write_run: WriteRun
) -> None:
    logs = [log(0, [*range(12)]), log(1, [*range(12)])]
    logs[earlier] = log(earlier, [0, 1])
    result = audit(write_run(logs, status="running", n_items=12))
    assert result.clean
    assert (result.pushes, result.items) == (14, 2)


@pytest.mark.parametrize(
    ("status", "examples"),
    [
        *(("finished", examples) for examples in (0, 40, 49, 51, 100)),
        *(("interrupted", examples) for examples in (51, 100)),
    ],
)
def test_the_summary_must_say_what_the_logs_say(
    examples: int, status: str, write_run: WriteRun
) -> None:
    result = audit(write_run(clean_logs(), status=status, examples_applied=examples))
    text = f"summary.json: says {examples} examples, the logs say 50"
    assert str(result.counter_example) == text


@pytest.mark.parametrize("examples", [0, 40, 49])
def test_a_run_that_was_cut_off_may_have_applied_more(examples: int, write_run: WriteRun) -> None:
    assert audit(write_run(clean_logs(), status="interrupted", examples_applied=examples)).clean


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_summary_that_agrees_is_clean(status: str, write_run: WriteRun) -> None:
    assert audit(write_run(clean_logs(), status=status, examples_applied=50)).clean


def test_the_summary_of_a_run_that_failed_is_of_the_moment_before(write_run: WriteRun) -> None:
    assert audit(write_run(clean_logs(), status="failed", examples_applied=20)).clean


def test_the_summary_counts_what_every_shard_has_applied(write_run: WriteRun) -> None:
    logs = [log(0, [0, 1, 2, 3]), log(1, [0, 1])]
    assert audit(write_run(logs, status="interrupted", examples_applied=20)).clean


def test_the_summary_counts_examples_that_could_not_be_read(write_run: WriteRun) -> None:
    logs = clean_logs()
    logs[0][2] = push(1, 2, examples=8, skipped=[11, 17])
    logs[1][1] = push(1, 1, examples=8, skipped=[11, 17])
    result = audit(write_run(logs, examples_applied=50))
    assert result.clean
    assert (result.examples, result.skipped) == (48, 2)


def test_skipped_examples_count_where_the_item_is_applied_everywhere(write_run: WriteRun) -> None:
    logs = [log(0, [0, 1, 2]), log(1, [0, 2])]
    logs[0][2] = push(1, 2, examples=8, skipped=[11, 17])
    logs[0][3] = push(2, 3, examples=4, skipped=[20])
    logs[1][2] = push(2, 2, examples=4, skipped=[20])
    result = audit(write_run(logs, status=None))
    assert result.clean
    assert (result.items, result.examples, result.skipped) == (2, 14, 1)


def test_a_base_of_an_incarnation_that_never_was_is_found(write_run: WriteRun) -> None:
    logs = clean_logs()
    for lines in logs:
        lines[0]["incarnation"] = 2
        for line in lines[1:]:
            line["base"] = [2, line["clock"] - 1]
    logs[0][3]["base"] = [1, 0]
    run = write_run([])
    for name, lines in zip(LOGS, logs, strict=True):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "pushes" / name.replace(".0001.", ".0002.")).write_text(text)
    name = LOGS[0].replace(".0001.", ".0002.")
    text = f"{name}, line 4: item 2 rests on version (1, 0), which no log has"
    assert str(audit(run).counter_example) == text


def test_a_log_must_say_what_its_clock_rests_on(write_run: WriteRun) -> None:
    logs = clean_logs()
    for lines in logs:
        lines[0]["clock"] = 40
        for line in lines[1:]:
            line["clock"] += 40
            line["base"] = [1, 40]
    text = f"{LOGS[0]}, line 1: starts at clock 40, from 0 items"
    assert str(audit(write_run(logs)).counter_example) == text


def test_a_torn_last_line_is_tolerated(write_run: WriteRun) -> None:
    whole = "".join(json.dumps(line) + "\n" for line in log(1, [0, 1, 2, 3]))
    result = audit(write_run([log(0, [0, 1, 2, 3]), whole[:-9]], status="running"))
    assert result.clean
    assert (result.pushes, result.items) == (7, 3)


def test_a_torn_last_line_of_a_finished_run_is_a_missing_item(write_run: WriteRun) -> None:
    whole = "".join(json.dumps(line) + "\n" for line in log(1, [0, 1, 2, 3, 4, 5]))
    result = audit(write_run([log(0, [0, 1, 2, 3, 4, 5]), whole[:-9]]))
    text = f"{LOGS[1]}: item 5 was not applied, though it must have been"
    assert str(result.counter_example) == text


def change(logs: list[Log], shard: int, line: int, **changes: Any) -> None:
    """Changes a line, counted from 1 as in the counter-example."""
    logs[shard][line - 1].update(changes)


FLAWS: list[tuple[str, Callable[[list[Log]], object], str]] = [
    ("gap in the clock", lambda x: x[0].pop(3), f"{LOGS[0]}, line 4: clock 4 follows 2"),
    (
        "clock stands still",
        lambda x: change(x, 1, 4, clock=2),
        f"{LOGS[1]}, line 4: clock 2 follows 2",
    ),
    (
        "clock does not start where the header says",
        lambda x: change(x, 1, 1, clock=1),
        f"{LOGS[1]}, line 2: clock 1 follows 1",
    ),
    (
        "item twice",
        lambda x: x[0].append(push(2, 7)),
        f"{LOGS[0]}, line 8: item 2 is applied a second time",
    ),
    (
        "item beyond the run",
        lambda x: x[0].append(push(6, 7)),
        f"{LOGS[0]}, line 8: item 6 is none of the run's 6",
    ),
    (
        "negative item",
        lambda x: change(x, 0, 3, item=-1),
        f"{LOGS[0]}, line 3: item -1 is none of the run's 6",
    ),
    (
        "wrong rate",
        lambda x: change(x, 1, 5, rate=0.5),
        f"{LOGS[1]}, line 5: item 4 has rate 0.5, the schedule says 0.25",
    ),
    (
        "a rate that is off by a hair",
        lambda x: change(x, 0, 2, rate=0.5000000000000001),
        f"{LOGS[0]}, line 2: item 0 has rate 0.5000000000000001, the schedule says 0.5",
    ),
    (
        "too few examples",
        lambda x: change(x, 0, 3, examples=9),
        f"{LOGS[0]}, line 3: item 1 covers 10 examples; 9 were used and 0 skipped",
    ),
    (
        "examples both used and skipped",
        lambda x: change(x, 0, 4, skipped=[3]),
        f"{LOGS[0]}, line 4: item 2 covers 5 examples; 5 were used and 1 skipped",
    ),
    (
        "base that was not there yet",
        lambda x: change(x, 0, 4, base=[1, 3]),
        f"{LOGS[0]}, line 4: item 2 rests on version (1, 3), which was not there yet",
    ),
    (
        "base of a later incarnation",
        lambda x: change(x, 0, 4, base=[2, 0]),
        f"{LOGS[0]}, line 4: item 2 rests on version (2, 0), which was not there yet",
    ),
    (
        "base from before the start",
        lambda x: change(x, 0, 2, base=[1, -1]),
        f"{LOGS[0]}, line 2: item 0 rests on version (1, -1), which never was",
    ),
    (
        "set aside without a reason",
        lambda x: x[1].insert(4, {"set_aside": 5, "reason": ""}),
        f"{LOGS[1]}, line 5: item 5 is set aside without a reason",
    ),
    (
        "set aside beyond the run",
        lambda x: x[0].append({"set_aside": 6, "reason": "norm"}),
        f"{LOGS[0]}, line 8: item 6 is none of the run's 6",
    ),
    (
        "set aside after it was applied",
        lambda x: x[0].insert(3, {"set_aside": 0, "reason": "norm"}),
        f"{LOGS[0]}, line 4: item 0 is set aside after it was applied",
    ),
    (
        "applied after it was set aside",
        lambda x: x[1].insert(4, {"set_aside": 3, "reason": "norm"}),
        f"{LOGS[1]}, line 7: item 3 is applied after it was set aside",
    ),
    (
        "missing item in a finished run",
        lambda x: x[1].pop(),
        f"{LOGS[1]}: item 5 was not applied, though it must have been",
    ),
    (
        "of two items that are missing the first",
        lambda x: [x[0].pop(), x[1].pop(), x[1].pop()],
        f"{LOGS[1]}: item 3 was not applied, though it must have been",
    ),
    (
        "examples differ between shards",
        lambda x: change(x, 1, 2, examples=9, skipped=[12]),
        f"{LOGS[1]}, line 2: item 1 has 9 examples here, 10 in {LOGS[0]}",
    ),
    (
        "gap between shards",
        lambda x: change(x, 1, 1, begin=60),
        f"{LOGS[1]}, line 1: starts at 60, not at 50",
    ),
    (
        "overlap of shards",
        lambda x: change(x, 1, 1, begin=49),
        f"{LOGS[1]}, line 1: starts at 49, not at 50",
    ),
    (
        "first shard does not start at 0",
        lambda x: change(x, 0, 1, begin=1),
        f"{LOGS[0]}, line 1: starts at 1, not at 0",
    ),
    (
        "shards end too early",
        lambda x: change(x, 1, 1, end=99),
        "pushes: 2 logs cover 99 of 100 parameters",
    ),
    ("a shard's log is missing", lambda x: x.pop(), "pushes: 1 logs cover 50 of 100 parameters"),
]


@pytest.mark.parametrize(("flaw", "text"), [f[1:] for f in FLAWS], ids=[f[0] for f in FLAWS])
def test_a_flaw_is_found(
    flaw: Callable[[list[Log]], object], text: str, write_run: WriteRun
) -> None:
    logs = copy.deepcopy(clean_logs())
    flaw(logs)
    result = audit(write_run(logs))
    assert not result.clean
    assert str(result.counter_example) == text


def test_one_shard_too_few_is_found_though_the_ranges_tile(write_run: WriteRun) -> None:
    lines = log(0, [0, 1, 2, 3, 4, 5])
    lines[0] = header(0, end=100)
    result = audit(write_run([lines], n_shards=2))
    assert str(result.counter_example) == "pushes: 1 logs cover 100 of 100 parameters"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{torn", "line 3 is damaged: "),
        ("[]", "line 3 is not an object"),
        ('{"item": 3}', "line 3 is no push: "),
        ('{"set_aside": 3}', "line 3 is no push: "),
        (json.dumps(push(0, 2, rate="fast")), "line 3 is no push: "),
        (json.dumps(push(0, 2) | {"item": [0]}), "line 3 is no push: "),
        (json.dumps(push(0, 2, base=[1])), "line 3 is no push: "),
        (json.dumps(push(0, 2, skipped=None)), "line 3 is no push: "),
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(
    line: str, text: str, write_run: WriteRun
) -> None:
    logs: list[Log | str] = list(clean_logs())
    lines = [json.dumps(entry) for entry in logs[1]]
    lines[2] = line
    logs[1] = "\n".join(lines) + "\n"
    run = write_run(logs)
    with pytest.raises(DataError) as caught:
        audit(run)
    assert str(caught.value).startswith(f"{run / 'pushes' / LOGS[1]}: {text}")


@pytest.mark.parametrize("text", ["", "{", json.dumps(header(1))])
def test_a_log_that_its_shard_was_killed_before_heading_is_none(
    text: str, write_run: WriteRun
) -> None:
    run = write_run([[header(0)], text], status=None)
    with pytest.raises(DataError, match="has applied nothing yet: not all of its shards have"):
        audit(run)


@pytest.mark.parametrize("status", [None, "finished"])
def test_if_others_have_pushes_a_shard_without_a_log_is_missed(
    status: str | None, write_run: WriteRun
) -> None:
    result = audit(write_run([clean_logs()[0], ""], status=status))
    assert str(result.counter_example) == "pushes: 1 logs cover 50 of 100 parameters"
    assert (result.clean, result.n_shards, result.pushes) == (False, 0, 0)


def test_a_run_whose_logs_are_all_without_a_header(write_run: WriteRun) -> None:
    run = write_run(["", "{"], status=None)
    with pytest.raises(DataError, match="has no push logs; has a shard ever started"):
        audit(run)


def test_a_line_that_is_no_header_is_an_error(write_run: WriteRun) -> None:
    with pytest.raises(DataError, match="line 1 is damaged"):
        audit(write_run([clean_logs()[0], "{\n"]))


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        audit(tmp_path / "nowhere")
    text = f"{tmp_path / 'nowhere'}: is no run's folder: there is no config.json"
    assert str(caught.value) == text


def test_a_run_without_logs(write_run: WriteRun) -> None:
    run = write_run([])
    with pytest.raises(DataError) as caught:
        audit(run)
    assert str(caught.value) == f"{run}: has no push logs; has a shard ever started?"


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize(
    ("contents", "text"), [("{", "cannot be read: "), ("[1]", "is not an object")]
)
def test_a_file_that_cannot_be_read(
    name: str, contents: str, text: str, write_run: WriteRun
) -> None:
    run = write_run(clean_logs())
    (run / name).write_text(contents)
    with pytest.raises(DataError) as caught:
        audit(run)
    assert str(caught.value).startswith(f"{run / name}: {text}")


def without(record: Any, *path: str) -> Any:
    for name in path[:-1]:
        record = record[name]
    return record.pop(path[-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.clear(),
        lambda record: without(record, "plan"),
        lambda record: without(record, "plan", "n_items"),
        lambda record: without(record, "parameters"),
        lambda record: without(record, "config", "schedule"),
        lambda record: record["plan"].update(surprise=1),
        lambda record: record["config"]["schedule"].update(surprise=1),
        lambda record: record.update(parameters=None),
        lambda record: record.update(config=[]),
        lambda record: record.update(plan=3),
    ],
)
def test_a_record_of_another_kind_is_an_error(
    damage: Callable[[Any], object], write_run: WriteRun
) -> None:
    run = write_run(clean_logs())
    record = json.loads((run / "config.json").read_text())
    damage(record)
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(DataError) as caught:
        audit(run)
    assert str(caught.value).startswith(f"{run / 'config.json'}: is no run's record: ")


def test_a_summary_without_a_status_is_of_a_run_that_is_not_finished(write_run: WriteRun) -> None:
    run = write_run([log(0, [0, 1]), log(1, [0, 1])])
    (run / "summary.json").write_text("{}")
    assert audit(run).clean


def test_a_log_that_is_no_text_is_an_error(write_run: WriteRun) -> None:
    run = write_run(clean_logs())
    (run / "pushes" / LOGS[1]).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        audit(run)
