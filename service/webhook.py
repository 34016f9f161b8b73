"""The words of webhooks: who is told of a study's states, what became of telling them, and how long it is tried."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from search_spaces.checking import StrictModel
from service.receivers import MAX_URL, RefusedReceiverError, parse_receiver
from service.study import Reason, StudyState

STUDY_STATE = "study.state"
"""The kind of event that webhooks are told."""

MAX_PER_OWNER = 20
"""Webhooks that one owner may have."""

TIMEOUT_S = 10.0
"""Time that a receiver has to answer one attempt, its name's resolution included."""

MAX_ATTEMPTS = 20
"""Attempts of one delivery before it is given up: by `retry_delay_s`, about 25 hours."""

MAX_AGE_S = 3 * 86_400.0
"""Seconds after which a delivery is not tried any more, so that the backlog of a dead receiver stays bounded."""

KEPT_S = 30 * 86_400.0
"""Seconds for which ended deliveries are kept."""

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 4 * 3600.0

LONGEST_WAIT_S = 1.25 * _LONGEST_DELAY_S
"""The longest that a delivery waits for its next attempt; one that is later was recorded before the clock went back."""


def retry_delay_s(attempts: int, jitter: float) -> float:
    """Seconds until the next attempt: 1 after the first one, then twice as long each time, at most 4 hours.

    attempts: those that have failed, 1 or more. jitter: uniform in [0, 1); makes it 75 to 125 % of that, so that
    what failed together is not tried again together.
    """
    doubled = _FIRST_DELAY_S * 2.0 ** min(attempts - 1, 30)
    return min(doubled, _LONGEST_DELAY_S) * (0.75 + jitter / 2)


def _checked_url(url: str) -> str:
    try:
        parse_receiver(url)
    except RefusedReceiverError as error:
        raise PydanticCustomError("rule", "{text}", {"text": str(error)}) from error
    return url


class NewWebhook(StrictModel):
    """What a webhook is created from."""

    url: Annotated[str, Field(strict=True, min_length=1, max_length=MAX_URL), AfterValidator(_checked_url)] = Field(
        description="where messages are POSTed: https or http, on the internet, without a user name or a fragment",
        examples=["https://example.org/samstudy"],
    )
    states: list[StudyState] = Field(
        default_factory=list, max_length=len(StudyState), description="the study states to be told; empty: all of them"
    )


class StudyStateData(BaseModel):
    """The study, as it was when its state changed."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: str
    owner: str
    state: StudyState
    reason: Reason | None = Field(description="why it has ended; null where it has not")
    error: str | None = Field(description="the end of the study's error, 2,000 characters at most")
    url: str = Field(description="where the study is in the API")


class StudyStateMessage(BaseModel):
    """What a webhook is sent."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["study.state"]
    id: str = Field(
        description="the same in every attempt, as the header webhook-id", examples=["msg_0123456789abcdef"]
    )
    created_at: datetime = Field(description="when the state changed")
    data: StudyStateData


class DeliveryState(StrEnum):
    """PENDING until a receiver has answered with 2xx; GIVEN_UP after too many attempts, or too long."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"


class Webhook(BaseModel):
    """An address that is told when a study of its owner changes its state."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    owner: str
    url: str
    states: list[StudyState] = Field(description="the study states that are told; empty: all of them")
    created_at: datetime


class Delivery(BaseModel):
    """One message to one webhook."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    message_id: str = Field(description="the webhook-id header; the same in every attempt")
    study_id: str
    study_state: StudyState = Field(description="what the message tells")
    state: DeliveryState
    attempts: int = Field(description=f"how often it was tried; {MAX_ATTEMPTS} at most")
    error: str | None = Field(description="what went wrong the last time")
    created_at: datetime
    next_attempt_at: datetime | None = Field(description="null once it is delivered or given up")
    delivered_at: datetime | None
