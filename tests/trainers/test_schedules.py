import pytest

from trainers.schedules import lam_at, learning_rate_at


def test_lambda_schedules_start_at_the_first_step_as_published() -> None:
    assert [lam_at("1/t", t) for t in (1, 2, 4)] == [1, 0.5, 0.25]
    assert [lam_at("1-1/t", t) for t in (1, 2, 4)] == [0, 0.5, 0.75]
    assert [lam_at(0.3, t) for t in (1, 2, 4)] == [0.3, 0.3, 0.3]


def test_steps_count_from_one_and_schedules_are_known() -> None:
    with pytest.raises(ValueError, match="t must be at least 1, got 0"):
        lam_at(0.5, 0)
    with pytest.raises(ValueError, match="got '1/t²'"):
        lam_at("1/t²", 1)
    with pytest.raises(ValueError, match="got 'linear'"):
        learning_rate_at("linear", 0, lr=0.1, total_steps=1)


def test_cosine_falls_from_the_learning_rate_through_its_half_to_almost_nothing() -> None:
    rates = [learning_rate_at("cosine", step, lr=0.2, total_steps=100) for step in range(100)]
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-4
    assert rates == sorted(rates, reverse=True)
    assert {learning_rate_at("constant", step, lr=0.2, total_steps=9) for step in range(9)} == {0.2}
