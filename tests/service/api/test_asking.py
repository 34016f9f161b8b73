"""Questions to something that may say nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.api.asking import Question


def test_a_thread_that_cannot_start_costs_one_answer_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    question = Question(lambda: "well", good_for_s=0.0, patience_s=5.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            question.answer()
    assert question.answer() == "well"


def test_an_answer_that_is_there_is_given_whatever_time_is_left() -> None:
    question = Question(lambda: "well", good_for_s=60.0, patience_s=0.05)
    assert question.answer() == "well"
    threading.Event().wait(0.1)
    assert asyncio.run(question.answer_later()) == "well"
