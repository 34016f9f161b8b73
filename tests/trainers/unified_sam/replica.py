"""Several replicas that train together; test_distributed.py starts them and compares.

python -m tests.trainers.unified_sam.replica WORLD_SIZE FOLDER
"""

import math
import multiprocessing
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before the replicas fork, as it takes longer than all that they do
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from tests.trainers.unified_sam.reference import Closure, a_batch, a_model, closure_for, weights_of
from trainers.batchnorm import frozen_running_statistics
from trainers.unified_sam import UnifiedSAM

STEPS = 5
SPOILT_STEP = 2
SETTINGS: dict[str, Any] = {"rho": 0.3, "lam": 0.5, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}

Step = Callable[[UnifiedSAM, nn.Module, int, int], None]


def whole(optimizer: UnifiedSAM, model: nn.Module, rank: int, number: int) -> None:
    optimizer.step(closure_for(model, a_batch(10 * number + rank)), model=model)


def compiled(optimizer: UnifiedSAM, model: nn.Module, rank: int, number: int) -> None:
    whole(optimizer, torch.compile(model, backend="eager"), rank, number)  # type: ignore[arg-type]


def by_hand(optimizer: UnifiedSAM, model: nn.Module, rank: int, number: int) -> None:
    assert isinstance(model, DistributedDataParallel)
    closure = closure_for(model, a_batch(10 * number + rank))
    optimizer.zero_grad()
    with model.no_sync():
        closure()
    optimizer.first_step()
    with frozen_running_statistics(model):
        closure()
    optimizer.second_step(model=model)


def micro_batches(optimizer: UnifiedSAM, model: nn.Module, rank: int, number: int) -> None:
    closures = [closure_for(model, a_batch(10 * number + 2 * rank + part)) for part in (0, 1)]
    optimizer.step_micro_batches(closures, [0.25, 0.75], model=model)


def spoilt_on_one_replica(optimizer: UnifiedSAM, model: nn.Module, rank: int, number: int) -> None:
    """In one step replica 1 alone has a gradient that is not finite, in its first pass."""
    closure = closure_for(model, a_batch(10 * number + rank))
    optimizer.step(spoilt(closure, model) if rank == 1 and number == SPOILT_STEP else closure, model=model)


def spoilt(closure: Closure, model: nn.Module) -> Closure:
    passes = 0

    def call() -> torch.Tensor:
        nonlocal passes
        passes += 1
        loss = closure()
        if passes == 1:
            next(model.parameters()).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]
        return loss

    return call


SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any], Step]] = {
    "synchronised": ({"synchronise": True}, {}, whole),
    "per replica": ({"synchronise": False}, {}, whole),
    "per replica, clipped, limited, adaptive": (
        {"synchronise": False, "clip_norm": 0.1, "max_perturbation": 0.2, "adaptive": True, "eta": 0.1},
        {},
        whole,
    ),
    "per replica, gradients in buckets": ({"synchronise": False}, {"gradient_as_bucket_view": True}, whole),
    "per replica, by hand": ({"synchronise": False}, {}, by_hand),
    "per replica, micro-batches": ({"synchronise": False}, {}, micro_batches),
    "synchronised, micro-batches": ({"synchronise": True}, {"gradient_as_bucket_view": True}, micro_batches),
    "per replica, spoilt": ({"synchronise": False}, {}, spoilt_on_one_replica),
    "per replica, spoilt, fused": ({"synchronise": False, "fused": True}, {}, spoilt_on_one_replica),
    "per replica, compiled": ({"synchronise": False}, {}, compiled),
    "without an ascent": ({"synchronise": False, "rho": 0.0}, {}, whole),
}


def outcome_of(scenario: str, rank: int) -> dict[str, Any]:
    """The weights after every step, and what the optimizer says at the end."""
    options, of_replication, step = SCENARIOS[scenario]
    model = DistributedDataParallel(a_model(), **of_replication)
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, **{**SETTINGS, **options})
    weights = []
    for number in range(STEPS):
        step(optimizer, model, rank, number)
        weights.append(weights_of(model))
    return {
        "weights": weights,
        "t": optimizer.t,
        "skipped_steps": int(optimizer.skipped_steps),
        "norms": [float(optimizer.last_grad_norm), float(optimizer.last_perturbation_norm)],
    }


def outcome_with_a_scaler(rank: int) -> dict[str, Any]:
    """In one step the gradients of replica 1 alone overflow: the scale must fall on both."""
    model = DistributedDataParallel(a_model().float())
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, synchronise=False, **SETTINGS)
    scaler = GradScaler("cpu", init_scale=2.0**10)
    for number in range(STEPS):
        inputs, targets = a_batch(10 * number + rank)

        def closure(inputs: torch.Tensor = inputs, targets: torch.Tensor = targets) -> torch.Tensor:
            loss = nn.functional.cross_entropy(model(inputs.float()), targets)
            scaler.scale(loss).backward()
            return loss

        is_spoilt = rank == 1 and number == SPOILT_STEP
        optimizer.step(spoilt(closure, model) if is_spoilt else closure, model=model, scaler=scaler)
    skipped_steps = int(optimizer.skipped_steps)
    return {"weights": [weights_of(model)], "scale": scaler.get_scale(), "skipped_steps": skipped_steps}


def outcome_in_groups_of_their_own(rank: int) -> dict[str, Any]:
    """Each replica is the only one of its process group; in one step replica 1 has a gradient that is not finite."""
    groups = [torch.distributed.new_group([member]) for member in range(torch.distributed.get_world_size())]
    model = DistributedDataParallel(a_model(), process_group=groups[rank])
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, synchronise=False, **SETTINGS)
    for number in range(STEPS):
        spoilt_on_one_replica(optimizer, model, rank, number)
    return {"weights": [weights_of(model)], "skipped_steps": int(optimizer.skipped_steps)}


def outcome_with_batch_normalisation(rank: int, *, synchronise: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double())
    optimizer = UnifiedSAM(model.parameters(), torch.optim.SGD, synchronise=synchronise, **SETTINGS)
    for number in range(STEPS):
        whole(optimizer, model, rank, number)
    statistics = model.module[0]  # type: ignore[index]
    return {
        "weights": [weights_of(model)],
        "batches": int(statistics.num_batches_tracked),
        "mean": statistics.running_mean,
    }


def train(rank: int, world_size: int, folder: Path) -> None:
    """Runs every scenario and writes what came of them to FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting-point'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    outcomes = {scenario: outcome_of(scenario, rank) for scenario in SCENARIOS}
    outcomes["scaler"] = outcome_with_a_scaler(rank)
    outcomes["groups of their own"] = outcome_in_groups_of_their_own(rank)
    for synchronise in (False, True):
        name = f"batch normalisation, {'synchronised' if synchronise else 'per replica'}"
        outcomes[name] = outcome_with_batch_normalisation(rank, synchronise=synchronise)
    torch.save(outcomes, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def main(world_size: int, folder: Path) -> int:
    """Trains every replica in a process of its own; 0 where all came to their end."""
    fork = multiprocessing.get_context("fork")
    replicas = [fork.Process(target=train, args=(rank, world_size, folder)) for rank in range(world_size)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join()
    return int(any(replica.exitcode for replica in replicas))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
