"""The weights before an ascent, kept to return to them bit for bit: (w + ε) − ε is not w."""

from __future__ import annotations

import torch
from torch import Tensor


class SavedWeights:
    """Copies of parameters, in memory that is used again from step to step. It is no part of any state.

    To be used without autograd.
    """

    def __init__(self) -> None:
        self._buffers: dict[Tensor, Tensor] = {}
        self._saved: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def is_holding(self) -> bool:
        """Whether weights were saved and not restored since."""
        return self._saved is not None

    def save(self, params: list[Tensor]) -> None:
        """Copies the parameters' values."""
        copies = [self._buffer_for(param) for param in params]
        if params:
            torch._foreach_copy_(copies, params)
        self._saved = params, copies

    def restore(self) -> None:
        """Writes the values back, into the parameters' own memory; where it was interrupted it can be called again.

        Raises RuntimeError where none were saved.
        """
        if self._saved is None:
            raise RuntimeError("no ascent to return from: call first_step() before")
        params, copies = self._saved
        if params:
            torch._foreach_copy_(params, copies)
        self._saved = None

    def _buffer_for(self, param: Tensor) -> Tensor:
        """The parameter's buffer; a new one where the parameter has moved or changed its kind since."""
        buffer = self._buffers.get(param)
        if (
            buffer is None
            or buffer.dtype != param.dtype
            or buffer.device != param.device
            or buffer.shape != param.shape
        ):
            buffer = self._buffers[param] = torch.empty_like(param)
        return buffer
