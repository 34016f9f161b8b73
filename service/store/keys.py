"""API keys: created, listed, revoked, and recognised when somebody sends one."""

from __future__ import annotations

import hmac
import logging

from sqlalchemy import exists, insert, select, update

from service.access import ApiKey, KeyToken, NewKey
from service.errors import KeyNotFoundError, StoreUnavailableError
from service.store import records, tables
from service.store.database import Database

_NO_HASH = "0" * 64  # no secret has it, as far as anybody knows

log = logging.getLogger(__name__)


class KeyStore:
    """Every key, whoever owns it; who may ask is the caller's business."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, new: NewKey) -> tuple[ApiKey, KeyToken]:
        """The key, and the only time that its token is known: the store keeps a hash of the secret."""
        token = KeyToken.new()
        with self._database.writing() as connection:
            connection.execute(
                insert(tables.api_keys).values(
                    id=token.key_id,
                    name=new.name,
                    owner=new.owner,
                    role=new.role,
                    secret_hash=token.secret_hash,
                    created_at=self._database.now(connection),
                )
            )
        return self.get(token.key_id), token

    def get(self, key_id: str) -> ApiKey:
        """Raises KeyNotFoundError."""
        query = records.selected(tables.api_keys, ApiKey).where(tables.api_keys.c.id == key_id)
        with self._database.asking() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise KeyNotFoundError(key_id)
        return records.as_record(ApiKey, row)

    def all(self) -> list[ApiKey]:
        """Every key, the newest first, revoked ones too."""
        table = tables.api_keys
        query = records.selected(table, ApiKey).order_by(table.c.created_at.desc(), table.c.id)
        with self._database.asking() as connection:
            return [records.as_record(ApiKey, row) for row in connection.execute(query)]

    def revoke(self, key_id: str) -> ApiKey:
        """Makes the key open nothing from now on; a revoked one stays as it is. Raises KeyNotFoundError."""
        table = tables.api_keys
        with self._database.writing() as connection:
            now = self._database.now(connection)
            connection.execute(
                update(table).where(table.c.id == key_id, table.c.revoked_at.is_(None)).values(revoked_at=now)
            )
        return self.get(key_id)

    def any_valid(self) -> bool:
        """Whether there is a key that was not revoked."""
        with self._database.asking() as connection:
            return bool(connection.execute(select(exists().where(tables.api_keys.c.revoked_at.is_(None)))).scalar_one())

    def any_made(self) -> bool:
        """Whether there ever was a key: one that was revoked counts."""
        with self._database.asking() as connection:
            return bool(connection.execute(select(exists(tables.api_keys.c.id))).scalar_one())

    def is_valid(self, key_id: str) -> bool:
        """Whether the key opens something still."""
        table = tables.api_keys
        query = select(exists().where(table.c.id == key_id, table.c.revoked_at.is_(None)))
        with self._database.asking() as connection:
            return bool(connection.execute(query).scalar_one())

    def authenticate(self, token: KeyToken) -> ApiKey | None:
        """The key that the token opens; None, after the same work, where its id, its secret or its time is wrong."""
        table = tables.api_keys
        with self._database.asking() as connection:
            row = connection.execute(select(table).where(table.c.id == token.key_id)).one_or_none()
        matches = hmac.compare_digest(_NO_HASH if row is None else row.secret_hash, token.secret_hash)
        if row is None or not matches or row.revoked_at is not None:
            return None
        return records.as_record(ApiKey, row)

    def note_use(self, key_id: str) -> None:
        """Remembers that the key was used just now. A store that is busy or away forgets it, which harms nobody."""
        table = tables.api_keys
        try:
            with self._database.writing() as connection:
                now = self._database.now(connection)
                connection.execute(update(table).where(table.c.id == key_id).values(last_used_at=now))
        except StoreUnavailableError as error:
            log.info("the use of key %s is not noted: %s", key_id, error)
