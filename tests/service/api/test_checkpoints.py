"""GET …/checkpoint: the file as it lies in the storage, the newest or the best one, whole or visibly not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.testclient import TestClient

from service import trial_checkpoints
from service.settings import Settings
from service.study import Study, Trial
from service.trial_checkpoints import Checkpoint, TrialCheckpoints
from tests.service.api.stores import on_sqlite

if TYPE_CHECKING:
    from tests.service.conftest import Life, RunningApi


class Trained:
    """A trial and its checkpoints."""

    def __init__(self, life: Life, storage_uri: str, **checkpoint: Any) -> None:
        self.study: Study = life.create(**({"checkpoint": checkpoint} if checkpoint else {}))
        self.trial: Trial = life.propose(life.start(self.study), {"lambda": 0.0, "rho": 0.1}, (0,))[0]
        self.checkpoints = TrialCheckpoints(storage_uri, self.study.id, self.trial.id)
        self.path = f"studies/{self.study.id}/trials/{self.trial.id}/checkpoint"


@pytest.fixture
def trained(life: Life, api_settings: Settings) -> Trained:
    trained = Trained(life, api_settings.storage_uri, keep="latest_and_best")
    for epoch in (1, 2, 3):
        trained.checkpoints.save(epoch, b"epoch %d" % epoch, is_best=epoch == 1)
    return trained


def test_the_newest_comes_by_default(api: TestClient, trained: Trained) -> None:
    answer = api.get(trained.path)
    assert (answer.status_code, answer.content) == (200, b"epoch 3")
    assert (answer.headers["samstudy-epoch"], answer.headers["content-length"]) == ("3", "7")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{trained.trial.id}-epoch-3.ckpt"'


def test_the_best_one_comes_where_it_is_asked_for(api: TestClient, trained: Trained) -> None:
    answer = api.get(trained.path, params={"which": "best"})
    assert (answer.content, answer.headers["samstudy-epoch"]) == (b"epoch 1", "1")
    wrong = api.get(trained.path, params={"which": "first"})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "which")


@on_sqlite
@pytest.mark.parametrize(
    ("checkpoint", "which", "why"),
    [
        ({"keep": "best"}, "best", "none was saved yet, or writing it has failed"),
        ({}, "latest", "none was saved yet, or writing it has failed"),
        ({"keep": "latest"}, "best", "checkpoint.keep is latest, and saves none for being the best"),
        ({"keep": "none"}, "latest", "checkpoint.keep is none, which leaves nothing of a trial that has ended"),
        ({"every_epochs": 0}, "latest", "checkpoint.every_epochs is 0"),
    ],
)
def test_where_there_is_none_it_says_why(
    checkpoint: dict[str, Any], which: str, why: str, api: TestClient, life: Life, api_settings: Settings
) -> None:
    trained = Trained(life, api_settings.storage_uri, **checkpoint)
    answer = api.get(trained.path, params={"which": which})
    assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
    assert why in answer.json()["detail"]


@on_sqlite
def test_a_study_or_trial_that_is_not_there(api: TestClient, trained: Trained) -> None:
    assert api.get("studies/nowhere/trials/x/checkpoint").json()["code"] == "study_not_found"
    assert api.get(f"studies/{trained.study.id}/trials/x/checkpoint").json()["code"] == "trial_not_found"


@on_sqlite
def test_one_that_is_removed_at_this_moment_gives_way_to_the_next(
    api: TestClient, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = TrialCheckpoints.opened

    def just_removed(self: TrialCheckpoints, checkpoint: Checkpoint) -> tuple[int, Iterator[bytes]]:
        if checkpoint.epoch == 3:
            trained.checkpoints.discard(checkpoint)
        return opened(self, checkpoint)

    monkeypatch.setattr(TrialCheckpoints, "opened", just_removed)
    assert api.get(trained.path).content == b"epoch 2"


@on_sqlite
def test_what_has_been_opened_comes_whole_also_when_it_is_removed_meanwhile(
    running_api: RunningApi, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_checkpoints, "_BLOCK_BYTES", 1_000)
    whole = os.urandom(3_000_000)
    trained.checkpoints.save(4, whole)
    url = f"{running_api.url}/api/v1/{trained.path}"
    with httpx.stream("GET", url, timeout=20, trust_env=False) as answer:
        blocks = answer.iter_bytes()
        read = next(blocks)
        trained.checkpoints.tidy("none", up_to_attempt=1)
        assert read + b"".join(blocks) == whole


@on_sqlite
def test_an_answer_that_breaks_off_is_not_taken_for_whole(
    running_api: RunningApi, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: TrialCheckpoints, checkpoint: Checkpoint) -> tuple[int, Iterator[bytes]]:
        def blocks() -> Iterator[bytes]:
            yield b"half"
            raise OSError("the disk is gone")

        return 8, blocks()

    monkeypatch.setattr(TrialCheckpoints, "opened", breaks)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{running_api.url}/api/v1/{trained.path}", timeout=20, trust_env=False)
    answer = httpx.get(f"{running_api.url}/api/v1/studies", timeout=20, trust_env=False)
    assert answer.status_code == 200, "the API goes on"


@on_sqlite
def test_a_storage_that_does_not_answer_is_said(api: TestClient, trained: Trained, api_settings: Settings) -> None:
    folder = Path(api_settings.storage_uri.removeprefix("file://")) / "studies" / trained.study.id / trained.trial.id
    (folder / "000009.ckpt").mkdir()  # opening it fails
    answer = api.get(trained.path)
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable"), answer.text
