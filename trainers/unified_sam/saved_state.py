"""What `UnifiedSAM.state_dict` holds beside the base optimizer's state, and the rules that a state keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainers.schedules import from_plain, to_plain
from trainers.unified_sam.ascent import SETTINGS, check_flag, check_limit, check_settings

_KEY = "unified_sam"


@dataclass(frozen=True)
class OwnState:
    """The attributes of UnifiedSAM, of the same names, that a resumed run needs.

    base: the name of its class; None in a state of an older version, which did not save it.
    t: at least 0. skipped_steps: (), an integer. max_perturbation, clip_norm: None or above 0.
    Raises ValueError for anything else.
    """

    base: str | None
    t: int
    skipped_steps: Tensor
    max_perturbation: float | None
    clip_norm: float | None
    synchronise: bool

    def __post_init__(self) -> None:
        if not isinstance(self.t, int) or isinstance(self.t, bool) or self.t < 0:
            raise ValueError(f"t must be an integer of at least 0, got {self.t!r}")
        skips = self.skipped_steps
        if not isinstance(skips, Tensor) or skips.shape != () or skips.dtype != torch.int64:
            raise ValueError(f"skipped_steps must be an int64 tensor of shape (), got {skips!r}")
        check_limit("max_perturbation", self.max_perturbation)
        check_limit("clip_norm", self.clip_norm)
        check_flag("synchronise", self.synchronise)


def join_state(base_state: Mapping[str, Any], own: OwnState) -> dict[str, Any]:
    """Both states as one, of tensors and plain data."""
    groups = [
        {**group, "rho": to_plain(group["rho"]), "lam": to_plain(group["lam"]), "eta": float(group["eta"])}
        for group in base_state["param_groups"]
    ]
    limits = {name: _plain_limit(getattr(own, name)) for name in ("max_perturbation", "clip_norm")}
    return {**base_state, "param_groups": groups, _KEY: asdict(own) | limits}


def split_state(state_dict: Mapping[str, Any], *, base: str) -> tuple[dict[str, Any], OwnState]:
    """What `join_state` was given.

    base: the name of the class of the base optimizer that is to go on from it.
    Raises ValueError where something is missing or breaks a rule, and where the state is of another class.
    """
    if not isinstance(state_dict.get(_KEY), Mapping):
        raise ValueError(f"not a state of UnifiedSAM: it has nothing under the key {_KEY!r}")
    own = _chosen({"base": None, **state_dict[_KEY]}, [field.name for field in fields(OwnState)])
    if own["base"] not in (None, base):
        raise ValueError(f"the base optimizer must be {own['base']}, whose state it is, got {base}")
    base_state = _chosen(state_dict, ["state", "param_groups"])
    groups = []
    for group in base_state["param_groups"]:
        settings = _chosen(group, [*SETTINGS, "params"])
        groups.append({**group, "rho": from_plain(settings["rho"]), "lam": from_plain(settings["lam"])})
        check_settings(groups[-1])
    return {**base_state, "param_groups": groups}, OwnState(**own)


def _plain_limit(limit: float | None) -> float | None:
    """A number of any kind, such as NumPy's, as one that torch.load(weights_only=True) reads."""
    return None if limit is None else float(limit)


def _chosen(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"the state has no {', '.join(missing)}")
    return {name: state[name] for name in names}
