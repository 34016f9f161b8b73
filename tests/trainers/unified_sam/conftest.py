import pytest

from trainers.unified_sam import scalars


@pytest.fixture(params=["floats", "tensors"])
def numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the numbers of a step are: floats, as on the CPU, or tensors, as on a device, in memory that can be read."""
    if request.param == "tensors":
        monkeypatch.setattr(scalars, "is_read_freely", lambda tensor: False)
    return request.param
