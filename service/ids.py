"""Ids that people read out and type: of studies, and of keys."""

from __future__ import annotations

import secrets

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without letters that are read as another."""

STUDY_ID_LENGTH = 10


def new_id(length: int) -> str:
    """So many random characters of the alphabet, of almost 5 bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def may_be_study_id(text: str) -> bool:
    """Whether the text is written as the id of a study."""
    return len(text) == STUDY_ID_LENGTH and set(text) <= set(ALPHABET)
