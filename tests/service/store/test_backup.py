"""The store in a file and back: consistent while others write, whole or not at all, from one database into another."""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select

from service.access import NewKey, Role
from service.errors import (
    BackupDamagedError,
    LeaseLostError,
    RestoreRefusedError,
    StoreUnavailableError,
    VersionConflictError,
)
from service.store import tables
from service.store.backup import JUMP, check_backup, restore_backup, write_backup
from service.store.changing import StudyChanges
from service.store.database import Database, known_revisions, upgrade
from service.store.driving import DrivingStore
from service.store.keys import KeyStore
from service.store.reconciling import ReconcilingStore
from service.store.reports import AttemptStarted, TrialEnded
from service.store.studies import StudyStore
from service.store.webhooks import WebhookStore
from service.study import AttemptState, Reason, StudyState, TrialState
from tests.postgresql import Databases
from tests.service.store import releases
from tests.service.store.conftest import Clock, Stores

if TYPE_CHECKING:
    from service.study import Study

OPENED = ("leases",)


@pytest.fixture
def new_store(new_url: str, open_url: Callable[..., Database]) -> Database:
    """A database with nothing in it."""
    return open_url(new_url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "samstudy.backup"


def everything(database: Database) -> releases.Contents:
    with database.reading() as connection:
        return releases.without(releases.contents(connection), *OPENED)


def but_for_the_restore(found: releases.Contents) -> releases.Contents:
    """The contents without what each restore adds: an event, revisions, far higher numbers of drivers and versions."""
    restores = Counter(event["study_id"] for event in found["events"].values() if event["kind"] == "study.restored")
    events = {key: event for key, event in found["events"].items() if event["kind"] != "study.restored"}
    contents = {**found, "events": events, "studies": {}, "trials": {}}
    for key, study in found["studies"].items():
        revision = study["revision"] - restores[study["id"]]
        contents["studies"][key] = {**study, "revision": revision, "driver_attempt": "ahead", "version": "ahead"}
    for key, trial in found["trials"].items():
        times = 0 if trial["state"] in ("SUCCEEDED", "EARLY_STOPPED") else restores[trial["study_id"]]
        contents["trials"][key] = {**trial, "revision": trial["revision"] - times}
    return contents


def a_running_study(stores: Stores) -> tuple[Study, DrivingStore]:
    """With a trial that has succeeded and one that runs."""
    study = stores.create(labels={"ü": "☂"}, description="two\nlines")
    driver = stores.drive(study)
    trial = stores.begin(driver)
    stores.report(driver, trial, 1)
    stores.succeed(driver, trial)
    running = stores.begin(driver)
    stores.report(driver, running, 1, value=0.25)
    return study, driver


def rewrite(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    file.write_bytes(gzip.compress("".join(f"{line}\n" for line in change(lines)).encode()))


def test_everything_comes_back(stores: Stores, new_store: Database, file: Path) -> None:
    finished = stores.create()
    driver = stores.drive(finished)
    stores.succeed(driver, stores.begin(driver))
    stores.finish(driver)
    key, token = KeyStore(stores.database).create(NewKey(owner="ada", role=Role.USER))
    before = everything(stores.database)
    written = write_backup(stores.database, file)
    assert restore_backup(new_store, file) == written == check_backup(file)
    assert but_for_the_restore(everything(new_store)) == but_for_the_restore(before)
    new_store.check_schema()
    opened = KeyStore(new_store).authenticate(token)
    assert opened is not None
    assert opened.id == key.id


def test_new_rows_do_not_collide_with_restored_ones(stores: Stores, new_store: Database, file: Path) -> None:
    a_running_study(stores)
    write_backup(stores.database, file)
    restore_backup(new_store, file)
    again = Stores(new_store)
    driver = again.drive(again.create())
    trial = again.begin(driver)
    again.report(driver, trial, 1)
    again.succeed(driver, trial)
    again.finish(driver)


def test_a_running_study_goes_on_after_a_restore(stores: Stores, new_store: Database, file: Path) -> None:
    study, _ = a_running_study(stores)
    write_backup(stores.database, file)
    restore_backup(new_store, file)
    studies, reconciling = StudyStore(new_store), ReconcilingStore(new_store)

    (overdue,) = reconciling.overdue_drivers()
    lost = reconciling.lose_driver(overdue, max_losses=5)
    assert lost is not None
    assert lost.state is StudyState.QUEUED
    claim = reconciling.claim(study.id, 60)
    assert claim is not None
    driver = DrivingStore(new_store, study.id, claim.driver_attempt)
    snapshot = driver.snapshot()
    done, open_trial = snapshot.trials
    assert (done.state, open_trial.state) == (TrialState.SUCCEEDED, TrialState.PENDING)
    assert (open_trial.epochs_done, open_trial.attempt) == (1, 1)
    driver.record([AttemptStarted(open_trial.id, 2, "node-2")])
    driver.record([TrialEnded(open_trial.id, 2, TrialState.SUCCEEDED, 0.75)])
    driver.finish(StudyState.SUCCEEDED, Reason.MAX_TRIALS, known=driver.snapshot().known)
    assert studies.get(study.id).state is StudyState.SUCCEEDED
    attempts = studies.attempts(study.id, open_trial.id)
    assert [attempt.state for attempt in attempts] == [AttemptState.LOST, AttemptState.SUCCEEDED]


def test_a_night_before_the_backup_is_charged_to_nobody_after_it(
    timed_stores: Any, clock: Any, open_url: Callable[..., Database], tmp_path: Path, file: Path
) -> None:
    study = timed_stores.create()
    driver = timed_stores.drive(study)
    driver.heartbeat(60)
    clock.advance(100)
    clock.sleep(28_800)
    driver.heartbeat(60)
    write_backup(timed_stores.database, file)
    new_store = open_url(f"sqlite:///{tmp_path / 'new.db'}", clock=clock)
    restore_backup(new_store, file)
    clock.advance(1_000)
    reconciling = ReconcilingStore(new_store)
    (overdue,) = reconciling.overdue_drivers()
    reconciling.lose_driver(overdue, max_losses=5)
    assert StudyStore(new_store).get(study.id).elapsed_s == 100


def test_a_driver_of_the_lost_store_is_refused(stores: Stores, new_store: Database, file: Path) -> None:
    study, _ = a_running_study(stores)
    waiting, ended = stores.create(), stores.create()
    stores.finish(stores.drive(ended))
    write_backup(stores.database, file)
    restore_backup(new_store, file)
    for study_id, number in ((study.id, 1), (study.id, 2), (waiting.id, 1), (ended.id, 1), (ended.id, 2)):
        with pytest.raises(LeaseLostError):
            DrivingStore(new_store, study_id, number).heartbeat(10)
    claim = ReconcilingStore(new_store).claim(waiting.id, 60)
    assert claim is not None
    assert claim.driver_attempt > JUMP


@pytest.mark.parametrize("step_s", [300, 1_500])
def test_a_backup_that_is_restored_again_gives_other_numbers(
    step_s: float, timed_stores: Stores, tmp_path: Path, file: Path, open_url: Callable[..., Database], clock: Clock
) -> None:
    """Drivers and ETags of every lost store are refused; also where the backup is of a store that was restored."""
    clock.now = datetime(2026, 3, 1, tzinfo=UTC)
    study, _ = a_running_study(timed_stores)
    write_backup(timed_stores.database, file)
    numbers = [(1, timed_stores.studies.get(study.id).version)]
    for name in ("first", "second", "third", "fourth"):
        clock.advance(step_s)
        database = open_url(f"sqlite:///{tmp_path / name}.db", clock=clock)
        restore_backup(database, file)
        stores = Stores(database)
        (overdue,) = stores.reconciling.overdue_drivers()
        stores.lose(overdue)
        for driver, version in numbers:
            with pytest.raises(LeaseLostError):
                DrivingStore(database, study.id, driver).heartbeat(10)
            with pytest.raises(VersionConflictError):
                stores.lifecycle.patch(study.id, StudyChanges(labels={}), if_version=version)
        driver = stores.claim(study).driver_attempt
        version = stores.lifecycle.patch(study.id, StudyChanges(labels={"a": "b"}), if_version=None).version
        numbers.append((driver, version))
        if name == "second":
            file.unlink()
            write_backup(database, file)
    assert len(set(numbers)) == len(numbers)


def test_a_restore_whose_clock_is_behind_moves_numbers_ahead_all_the_same(
    timed_stores: Stores, tmp_path: Path, file: Path, open_url: Callable[..., Database], clock: Clock
) -> None:
    clock.now = datetime(2025, 1, 1, tzinfo=UTC)
    study = timed_stores.create()
    write_backup(timed_stores.database, file)
    database = open_url(f"sqlite:///{tmp_path / 'new.db'}", clock=clock)
    restore_backup(database, file)
    assert Stores(database).claim(study).driver_attempt == JUMP + 1


def test_a_reader_of_the_lost_store_misses_nothing_of_the_new_one(
    stores: Stores, new_store: Database, file: Path
) -> None:
    study = stores.create()
    finished = stores.create()
    stores.finish(stores.drive(finished))
    written = write_backup(stores.database, file)
    for _ in range(5):
        stores.lifecycle.pause(study.id)
        stores.lifecycle.resume(study.id)
    seen = stores.studies.events(study.id)[-1].id
    restore_backup(new_store, file)
    again = Stores(new_store)
    again.lifecycle.pause(study.id)
    restored, paused = again.studies.events(study.id, after=seen)
    assert (restored.kind, restored.data) == ("study.restored", {"backup_of": written.created_at.isoformat()})
    assert (paused.kind, paused.data["state"]) == ("study.state", "PAUSED")
    assert [event.kind for event in again.studies.events(finished.id, after=seen)] == ["study.restored"]


def test_ids_of_events_go_on_from_the_time_of_the_restore_however_often_there_is_one(
    stores: Stores, file: Path, tmp_path: Path, open_url: Callable[..., Database]
) -> None:
    study = stores.create()
    write_backup(stores.database, file)
    clock = Clock()
    seen = 0
    for number in range(2):
        store = open_url(f"sqlite:///{tmp_path / f'restored{number}.db'}", clock=clock)
        restore_backup(store, file)
        restored = Stores(store).studies.events(study.id)[-1]
        assert restored.id == clock.now.timestamp() * 1000
        assert restored.id > seen
        for _ in range(5):
            Stores(store).lifecycle.pause(study.id)
            Stores(store).lifecycle.resume(study.id)
        seen = Stores(store).studies.events(study.id)[-1].id
        clock.advance(1)


def test_nobody_leads_a_restored_store(stores: Stores, new_store: Database, file: Path) -> None:
    assert stores.reconciling.lead("controller", "a", 3600)
    write_backup(stores.database, file)
    restore_backup(new_store, file)
    assert ReconcilingStore(new_store).lead("controller", "b", 10)


@pytest.mark.parametrize("way", ["sqlite → postgresql", "postgresql → sqlite"])
def test_a_store_moves_to_the_other_kind_of_database_and_back(
    way: str, tmp_path: Path, postgresql: Databases, open_url: Callable[..., Database]
) -> None:
    urls = [f"sqlite:///{tmp_path / 'a.db'}", postgresql.create(), f"sqlite:///{tmp_path / 'b.db'}"]
    if way.startswith("postgresql"):
        urls = [urls[1], urls[0], postgresql.create()]
    first, second, third = (open_url(url) for url in urls)
    first.migrate()
    stores = Stores(first)
    a_running_study(stores)
    with first.writing() as connection:
        connection.execute(tables.trials.update().values(objective=float("inf"), error="before\x00after"))
    WebhookStore(first)
    write_backup(first, tmp_path / "1")
    restore_backup(second, tmp_path / "1")
    write_backup(second, tmp_path / "2")
    restore_backup(third, tmp_path / "2")

    def expected(found: releases.Contents) -> releases.Contents:
        for study in found["studies"].values():
            study["lease_expires_at"] = None
        return but_for_the_restore(found)

    assert expected(everything(second)) == expected(everything(third)) == expected(everything(first))
    assert {row["objective"] for row in everything(third)["trials"].values()} == {float("inf")}
    again = Stores(second)
    again.begin(again.drive(again.create()))


def test_what_a_release_has_backed_up_is_restored_up_to_date(
    new_store: Database, tmp_path: Path, file: Path, open_url: Callable[..., Database]
) -> None:
    for revision in releases.REVISIONS:
        old = open_url(f"sqlite:///{tmp_path / f'{revision}.db'}")
        with old.writing() as connection:
            upgrade(connection, revision)
            releases.fill(connection, revision)
        assert write_backup(old, file).revision == revision
        restore_backup(new_store, file)
        new_store.check_schema()
        before, after = everything(old), but_for_the_restore(everything(new_store))
        names = ("trials", "attempts", "results", "events", "configurations")
        kept = releases.only_columns_of(after, before)
        assert {name: kept[name] for name in names} == {name: before[name] for name in names}
        assert Stores(new_store).create().version == 1
        file.unlink()
        with new_store.writing() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.execute(table.delete())


def test_a_backup_is_one_moment_however_long_it_takes(stores: Stores, new_store: Database, file: Path) -> None:
    study, driver = a_running_study(stores)
    stop = threading.Event()
    failures: list[Exception] = []

    def go_on() -> None:
        try:
            while not stop.is_set():
                trial = stores.begin(driver)
                stores.report(driver, trial, 1)
                stores.succeed(driver, trial)
        except Exception as error:  # noqa: BLE001  # the test shows it
            failures.append(error)

    writing = threading.Thread(target=go_on)
    writing.start()
    try:
        written = [write_backup(stores.database, file.with_suffix(f".{number}")) for number in range(5)]
    finally:
        stop.set()
        writing.join(30)
    assert failures == []
    assert written[0].rows["trials"] <= written[-1].rows["trials"]
    restore_backup(new_store, file.with_suffix(".4"))
    found = everything(new_store)
    ended = [trial for trial in found["trials"].values() if trial["state"] == TrialState.SUCCEEDED]
    attempts = {(row["trial_id"], row["number"]): row["state"] for row in found["attempts"].values()}
    assert all(attempts[trial["id"], trial["attempt"]] == AttemptState.SUCCEEDED for trial in ended)
    assert StudyStore(new_store).get(study.id).state is StudyState.RUNNING


def test_nobody_else_may_read_a_backup(stores: Stores, file: Path) -> None:
    write_backup(stores.database, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_backup_replaces_nothing(stores: Stores, file: Path) -> None:
    file.write_text("precious")
    with pytest.raises(FileExistsError, match="replaces nothing"):
        write_backup(stores.database, file)
    assert file.read_text() == "precious"


def test_a_backup_that_fails_leaves_no_file(new_store: Database, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    with pytest.raises(StoreUnavailableError, match="nothing that it could back up"):
        write_backup(new_store, folder / "empty")
    assert list(folder.iterdir()) == []


def test_a_file_that_was_cut_off_is_refused_wherever_it_was(
    stores: Stores, new_store: Database, file: Path, tmp_path: Path
) -> None:
    a_running_study(stores)
    write_backup(stores.database, file)
    whole = file.read_bytes()
    cut = tmp_path / "cut"
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        cut.write_bytes(whole[:length])
        with pytest.raises(BackupDamagedError):
            restore_backup(new_store, cut)
    with new_store.reading() as connection:
        assert releases.contents(connection) == {}


def test_a_file_with_a_wrong_byte_is_refused_wherever_it_is(stores: Stores, file: Path) -> None:
    a_running_study(stores)
    write_backup(stores.database, file)
    whole = file.read_bytes()
    written = check_backup(file)
    refused = 0
    for position in range(10, len(whole), max(1, len(whole) // 40)):  # the first bytes are gzip's, and free
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            assert check_backup(file) == written
            assert gzip.decompress(file.read_bytes()) == gzip.decompress(whole), "a bit that fills the stream up"
        except BackupDamagedError:
            refused += 1
    assert refused >= 39


def _of_the_revision_before(header: str) -> str:
    before, newest = known_revisions()[-2:]
    assert newest in header
    return header.replace(newest, before)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[:-1], id="no footer"),
        pytest.param(lambda lines: [*lines[:-3], *lines[-2:]], id="a line less"),
        pytest.param(lambda lines: [*lines, lines[-1]], id="a line more"),
        pytest.param(lambda lines: [_of_the_revision_before(lines[0]), *lines[1:]], id="another revision"),
        pytest.param(lambda lines: [line.replace("two", "six") for line in lines], id="another word"),
        pytest.param(lambda lines: [json.dumps({"kind": "holiday photos", "format": 1})], id="something else"),
        pytest.param(lambda lines: ["[1]"], id="a list"),
        pytest.param(lambda lines: [], id="nothing"),
    ],
)
def test_a_file_that_somebody_changed_is_refused(
    change: Callable[[list[str]], list[str]], stores: Stores, file: Path
) -> None:
    a_running_study(stores)
    write_backup(stores.database, file)
    rewrite(file, change)
    with pytest.raises(BackupDamagedError, match="damaged"):
        check_backup(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no backup",
        b"\x1f\x8b",
        *(gzip.compress(text, mtime=0) for text in (b"{}\n", b"\xff\n", 100_000 * b"[" + b"\n")),
    ],
    ids=["nothing", "text", "a beginning", "an object", "no text", "a depth"],
)
def test_what_is_no_backup_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(BackupDamagedError, match="damaged"):
        check_backup(file)


def test_a_backup_without_tables_is_refused(stores: Stores, file: Path) -> None:
    write_backup(stores.database, file)
    header = gzip.decompress(file.read_bytes()).splitlines(keepends=True)[0]
    footer = json.dumps({"rows": {}, "sha256": hashlib.sha256(header).hexdigest()}).encode()
    file.write_bytes(gzip.compress(header + footer + b"\n"))
    with pytest.raises(BackupDamagedError, match="lacks results, studies, trials"):
        check_backup(file)


def test_a_store_with_something_in_it_is_refused_and_stays_as_it_is(stores: Stores, file: Path) -> None:
    a_running_study(stores)
    write_backup(stores.database, file)
    before = everything(stores.database)
    with pytest.raises(RestoreRefusedError, match=r"not empty \(studies: 1\)"):
        restore_backup(stores.database, file)
    assert everything(stores.database) == before


def test_a_store_that_a_controller_works_on_is_refused(stores: Stores, file: Path) -> None:
    write_backup(stores.database, file)
    assert stores.reconciling.lead("controller", "a", 3600)
    with pytest.raises(RestoreRefusedError, match="stop the service first"):
        restore_backup(stores.database, file)
    stores.reconciling.give_up_lead("controller", "a")
    restore_backup(stores.database, file)


def test_a_backup_of_a_newer_version_is_refused(stores: Stores, new_store: Database, file: Path) -> None:
    with stores.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnavailableError, match="9999"):
        write_backup(stores.database, file)


def test_what_the_database_does_not_take_is_refused_and_nothing_is_left(
    tmp_path: Path, file: Path, postgresql: Databases, open_url: Callable[..., Database]
) -> None:
    old = open_url(f"sqlite:///{tmp_path / 'old.db'}")
    old.migrate()
    a_running_study(Stores(old))
    with old.writing() as connection:
        connection.execute(tables.results.update().values(metrics={"val_loss": float("nan")}))
    write_backup(old, file)
    new = open_url(postgresql.create())
    with pytest.raises(RestoreRefusedError, match="the database does not take these results"):
        restore_backup(new, file)
    with new.reading() as connection:
        assert releases.contents(connection) == {}


@pytest.mark.soak
def test_a_large_store_needs_little_memory(tmp_path: Path, file: Path, open_url: Callable[..., Database]) -> None:
    old = open_url(f"sqlite:///{tmp_path / 'old.db'}")
    old.migrate()
    stores = Stores(old)
    study = stores.create()
    at = datetime.now(UTC)
    with old.writing() as connection:
        for start in range(0, 30_000, 1_000):
            rows = [
                {"study_id": study.id, "kind": "k", "data": {"text": "x" * 200}, "at": at}
                for _ in range(start, start + 1_000)
            ]
            connection.execute(insert(tables.events), rows)
    new = open_url(f"sqlite:///{tmp_path / 'new.db'}")
    new.migrate()

    def peak(action: Callable[[], Any]) -> int:
        tracemalloc.start()
        action()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(lambda: write_backup(old, file)) < 8 * 1024**2
    assert peak(lambda: restore_backup(new, file)) < 8 * 1024**2
    with new.reading() as connection:
        assert len(connection.execute(select(tables.events.c.id)).all()) == 30_002
