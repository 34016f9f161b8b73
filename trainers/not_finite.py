"""What a training raises where its numbers, or what is measured beside it, are not finite."""

from __future__ import annotations

from trainers.metrics import LANDSCAPE


class NotFiniteError(RuntimeError):
    """What was measured of a training is not finite; `epoch` and `metric` say where."""

    what = "what was measured is not finite"

    def __init__(self, epoch: int, metric: str, value: float) -> None:
        what = "the landscape is not finite (landscape: none leaves it out)" if metric in LANDSCAPE else self.what
        super().__init__(f"{what}: {metric} is {value} in epoch {epoch}")
        self.epoch, self.metric, self.value = epoch, metric, value

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[int, str, float]]:
        return type(self), (self.epoch, self.metric, self.value)


class DivergedError(NotFiniteError):
    """The training itself left the finite numbers: its settings are too bold, and the next run of them will be too."""

    what = "training diverged"
