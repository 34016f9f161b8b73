"""Which limits lead on a study that has ended."""

from service.spec_sections import Budget
from service.store.reopening import raised_limits

ENDS_NO_STUDY = {"max_concurrent_trials", "max_trial_s"}


def test_every_limit_either_ends_a_study_and_reopens_it_or_is_known_to_end_none() -> None:
    """A new limit belongs in one of the two."""
    lowest, none = dict.fromkeys(Budget.model_fields, 1), dict.fromkeys(Budget.model_fields)
    assert set(raised_limits(lowest, none)) == Budget.model_fields.keys() - ENDS_NO_STUDY
