"""Who may do what: owners, roles, and the form of a key."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from search_spaces.checking import StrictModel, shown
from service.ids import ALPHABET, new_id
from service.text_rules import checked_name

LOCAL_OWNER = "local"
"""Owner of what is made while the API is open to whoever reaches its loopback address."""


class Role(StrEnum):
    """ADMIN: everything, of every owner. USER: its owner's studies. VIEWER: reads its owner's studies."""

    ADMIN = "admin"
    USER = "user"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: for which owner, in which role, with which key (None where no key was needed)."""

    owner: str
    role: Role
    key_id: str | None = None

    @property
    def scope(self) -> str | None:
        """The owner whose studies it may see; None: every study."""
        return None if self.role is Role.ADMIN else self.owner

    @property
    def may_change(self) -> bool:
        """Whether it may do more than read."""
        return self.role is not Role.VIEWER


OPEN_ACCESS = Principal(LOCAL_OWNER, Role.ADMIN)
"""Everybody, where no key is needed."""

_OWNER_RULE = "letters, digits and . _ @ + -, beginning with a letter or digit"
_OWNER = r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$"

OwnerName = Annotated[str, Field(strict=True, min_length=1, max_length=100, pattern=_OWNER, description=_OWNER_RULE)]
"""ASCII, so that no two owners look alike."""


class NewKey(StrictModel):
    """What a key is created from."""

    owner: OwnerName = Field(description=f"whose studies it opens: {_OWNER_RULE}", examples=["ada"])
    role: Role = Field(description="admin: everything; user: its owner's studies; viewer: reads them")
    name: Annotated[str, Field(strict=True, max_length=100), AfterValidator(checked_name)] = Field(
        "", description="what it is for, in your own words"
    )


class ApiKey(BaseModel):
    """A key as it is shown: without its secret, which nobody has but its holder."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    owner: str
    role: Role
    created_at: datetime
    last_used_at: datetime | None = Field(description="to within a minute; null: never")
    revoked_at: datetime | None = Field(description="since when it opens nothing any more; null: it is valid")

    @property
    def principal(self) -> Principal:
        """Who asks with this key."""
        return Principal(self.owner, self.role, self.id)


_ID_LENGTH = 12
_SECRET_BYTES = 32
_TOKEN = re.compile(rf"sam_([{ALPHABET}]{{{_ID_LENGTH}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})")


@dataclass(frozen=True, slots=True)
class KeyToken:
    """What the holder of a key sends: sam_<id>_<secret>. Its repr does not have the secret."""

    key_id: str
    secret: str

    @classmethod
    def new(cls) -> Self:
        """A token nobody has seen: 256 random bits."""
        return cls(new_id(_ID_LENGTH), secrets.token_hex(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where the text has not the form of a token."""
        match = _TOKEN.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    @property
    def text(self) -> str:
        return f"sam_{self.key_id}_{self.secret}"

    @property
    def secret_hash(self) -> str:
        """SHA-256 in hexadecimal; a secret this random needs no salt and no slow hash."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"KeyToken({shown(self.key_id)}, …)"
