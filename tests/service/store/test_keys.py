"""API keys in the store: shown once, kept as a hash, and none of their secrets anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from service.access import KeyToken, NewKey, Role
from service.errors import KeyNotFoundError, StudyNotFoundError
from service.store import tables
from service.store.database import Database
from service.store.keys import KeyStore
from service.store.studies import NewStudy, StudyFilter, StudyStore

if TYPE_CHECKING:
    from tests.service.store.conftest import Clock

ADA = NewKey(owner="ada", role=Role.USER, name="notebook")


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


def test_a_key_is_recognised_by_its_token_and_by_nothing_else(keys: KeyStore) -> None:
    key, token = keys.create(ADA)
    assert (key.owner, key.role, key.name, key.last_used_at, key.revoked_at) == (
        "ada",
        Role.USER,
        "notebook",
        None,
        None,
    )
    assert keys.authenticate(token) == key
    assert keys.authenticate(KeyToken(key.id, "0" * 64)) is None
    assert keys.authenticate(KeyToken("aaaaaaaaaaaa", token.secret)) is None


def test_a_hash_that_was_stolen_opens_nothing(keys: KeyStore) -> None:
    key, token = keys.create(ADA)
    assert keys.authenticate(KeyToken(key.id, token.secret_hash)) is None


def test_the_store_does_not_have_the_secret(keys: KeyStore, database: Database) -> None:
    _, token = keys.create(ADA)
    with database.reading() as connection:
        (row,) = connection.execute(tables.api_keys.select()).all()
    assert token.secret not in repr(row)
    assert token.secret_hash in repr(row)
    assert token.secret not in repr(token)


def test_two_keys_share_nothing(keys: KeyStore) -> None:
    tokens = [keys.create(ADA)[1] for _ in range(2)]
    assert len({token.key_id for token in tokens} | {token.secret for token in tokens}) == 4


def test_a_revoked_key_opens_nothing_and_stays_listed(keys: KeyStore) -> None:
    key, token = keys.create(ADA)
    revoked = keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert keys.authenticate(token) is None
    assert keys.all() == [revoked]
    assert keys.revoke(key.id) == revoked


def test_what_is_not_there_cannot_be_revoked(keys: KeyStore) -> None:
    with pytest.raises(KeyNotFoundError):
        keys.revoke("nowhere")


def test_only_valid_keys_count(keys: KeyStore) -> None:
    assert not keys.any_valid()
    key, _ = keys.create(ADA)
    assert keys.any_valid()
    keys.revoke(key.id)
    assert not keys.any_valid()


def test_a_key_that_was_revoked_was_made(keys: KeyStore) -> None:
    assert not keys.any_made()
    key, _ = keys.create(ADA)
    keys.revoke(key.id)
    assert keys.any_made()


def test_a_key_is_valid_until_it_is_revoked(keys: KeyStore) -> None:
    key, _ = keys.create(ADA)
    assert keys.is_valid(key.id)
    assert not keys.is_valid("nowhere")
    keys.revoke(key.id)
    assert not keys.is_valid(key.id)


def test_the_newest_key_is_listed_first(open_sqlite: Callable[..., Database], clock: Clock) -> None:
    keys = KeyStore(open_sqlite(clock=clock))
    older, _ = keys.create(ADA)
    clock.advance(1)
    newer, _ = keys.create(ADA)
    assert [key.id for key in keys.all()] == [newer.id, older.id]


def test_its_last_use_is_noted(open_sqlite: Callable[..., Database], clock: Clock) -> None:
    keys = KeyStore(open_sqlite(clock=clock))
    key, _ = keys.create(ADA)
    clock.advance(5)
    keys.note_use(key.id)
    assert keys.get(key.id).last_used_at == key.created_at + timedelta(seconds=5)


def test_a_store_that_is_away_forgets_the_last_use_and_complains_not(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'without-tables.db'}")
    KeyStore(database).note_use("aaaaaaaaaaaa")
    database.dispose()


def test_a_token_is_read_back_from_its_text_only() -> None:
    token = KeyToken.new()
    assert token.text == f"sam_{token.key_id}_{token.secret}"
    assert KeyToken.parse(token.text) == token
    for text in (
        "",
        "sam_",
        token.text[:-1],
        token.text + "0",
        token.text.upper(),
        f" {token.text}",
        f"{token.text}\n",
    ):
        assert KeyToken.parse(text) is None, text


@pytest.mark.parametrize("owner", ["", "a b", "ada\n", "аda", ".ada", "a" * 101, "ada/../bob", "ada\x00", "%61da"])
def test_an_owner_is_a_plain_name(owner: str) -> None:
    with pytest.raises(ValidationError):
        NewKey(owner=owner, role=Role.USER)


@pytest.mark.parametrize("name", ["a\nb", "a\u202eb", "a\u200bb", " a", "x" * 101])
def test_a_keys_name_is_one_visible_line(name: str) -> None:
    with pytest.raises(ValidationError):
        NewKey(owner="ada", role=Role.USER, name=name)


class TestScope:
    """StudyStore sees the studies of its scope only."""

    @pytest.fixture
    def studies(self, database: Database) -> StudyStore:
        everything = StudyStore(database)
        for owner in ("ada", "bob"):
            everything.create(NewStudy(f"of-{owner}", "", {"team": owner}, {"name": "s"}, owner, "digest"))
        return everything

    def test_without_one_every_study_is_there(self, studies: StudyStore) -> None:
        assert {study.owner for study in studies.page(StudyFilter(), page_size=9).studies} == {"ada", "bob"}

    def test_a_list_shows_its_owners_only(self, studies: StudyStore, database: Database) -> None:
        scoped = StudyStore(database, "ada")
        for wanted in (StudyFilter(), StudyFilter(owner="ada"), StudyFilter(labels=[("team", "ada")])):
            assert [study.owner for study in scoped.page(wanted, page_size=9).studies] == ["ada"]
        for wanted in (StudyFilter(owner="bob"), StudyFilter(labels=[("team", "bob")]), StudyFilter(name="of-bob")):
            assert scoped.page(wanted, page_size=9).studies == []

    def test_anothers_study_is_not_there(self, studies: StudyStore, database: Database) -> None:
        (of_bob,) = studies.page(StudyFilter(owner="bob"), page_size=9).studies
        scoped = StudyStore(database, "ada")
        calls: list[Callable[[], object]] = [
            lambda: scoped.get(of_bob.id),
            lambda: scoped.configurations(of_bob.id),
            lambda: scoped.configuration(of_bob.id, "x"),
            lambda: scoped.trials(of_bob.id),
            lambda: scoped.trial(of_bob.id, "x"),
            lambda: scoped.attempts(of_bob.id, "x"),
            lambda: scoped.results(of_bob.id, "x"),
            lambda: scoped.events(of_bob.id),
        ]
        for call in calls:
            with pytest.raises(StudyNotFoundError):
                call()
        assert scoped.trial_counts([of_bob.id]) == {of_bob.id: {}}

    def test_two_owners_may_use_the_same_idempotency_key(self, database: Database) -> None:
        ids = set()
        for owner in ("ada", "bob"):
            new = NewStudy("s", "", {}, {"name": "s"}, owner, f"digest of {owner}", idempotency_key="k")
            ids.add(StudyStore(database, owner).create(new)[0].id)
        assert len(ids) == 2
