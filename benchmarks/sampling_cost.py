"""What drawing the mini-batches costs, beside a Unified SAM step with them.

    python benchmarks/sampling_cost.py [--model preact_resnet18] [--device cuda]

Small data, on the CPU: the default configuration (digits, mlp, batches of 64), and with small_cnn. Real training,
one epoch of each sampling after the other in every round; what the sampler takes of the process' time, between the
steps as it is, with caches that the steps have filled. The shares are of all training time but gradient_norm's forward
pass over its candidates, which is given apart; gradient_norm is made to be on in every epoch. Of all times the least
over the rounds is taken, since whatever else runs on the machine only adds to it.

CIFAR-shaped data (45,000 uint8 images on the device), batches of 128. In every round, one after the other: some whole
steps (gather, normalise, two passes, update), one epoch of every sampling without the steps (drawing, observing the
losses, the diagnostics), and the forward pass that gradient_norm scores its candidates with. The times are medians over
the rounds; a sampling's is that of its epoch divided by the steps of the epoch.

The limit is 3 % of a step of the networks and data that step_time.py times, without the forward pass; what small data
take is told beside it. Loss scores need no such pass: they are the losses of the step's own first one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainers.catalog import DATASETS, SAMPLINGS
from trainers.config import TrainConfig
from trainers.loop import Training
from trainers.models import build_model
from trainers.sampling import MiniBatch, Sampler, build_sampler, output_gradient_norms
from trainers.unified_sam import UnifiedSAM

_DATASET = DATASETS["cifar10"]
_SIZE, _BATCH, _FACTOR = _DATASET.train_size, 128, 3
_STEPS_PER_EPOCH = -(-_SIZE // _BATCH)
_LIMIT = 0.03
_SMALL_MODELS = ("mlp", "small_cnn")
_WARM_EPOCHS = 3


@dataclass(frozen=True)
class Run:
    """A model with its optimizer, and the data on its device."""

    model: nn.Module
    optimizer: UnifiedSAM
    images: Tensor
    targets: Tensor

    def inputs(self, indices: Tensor) -> Tensor:
        """(b, 3, 32, 32), float32."""
        return self.images[indices].float().div_(127.5).sub_(1)

    def step(self, batch: MiniBatch) -> Tensor:
        """One step of Unified SAM; returns the losses of the first pass, (b,), unweighted."""
        inputs, targets = self.inputs(batch.indices), self.targets[batch.indices]
        seen: list[Tensor] = []

        def closure() -> Tensor:
            losses = nn.functional.cross_entropy(self.model(inputs), targets, reduction="none")
            seen.append(losses.detach())
            loss = (batch.weights * losses).mean()
            loss.backward()
            return loss

        self.optimizer.step(closure, model=self.model)
        return seen[0]

    @torch.no_grad()
    def score(self, indices: Tensor) -> Tensor:
        """(m,): what gradient_norm does with its candidates."""
        self.model.eval()
        outputs = self.model(self.inputs(indices))
        self.model.train()
        return output_gradient_norms("classification", outputs, self.targets[indices])


def main() -> None:
    """Prints the times as Markdown tables."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--model", default="small_cnn")
    arguments.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--small-rounds", type=int, default=25, help="rounds on the small data")
    arguments.add_argument("--steps", type=int, default=10, help="steps timed in a round")
    arguments.add_argument("--threads", type=int, default=None, help="of torch, on the CPU")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    shares = [_small_data(model, options.small_rounds) for model in _SMALL_MODELS] if device.type == "cpu" else []
    run = _run(options.model, device)
    samplers = {name: _sampler(name, run, device) for name in (*SAMPLINGS, "gradient_norm, off")}
    batch = next(iter(samplers["uniform"].batches()))
    candidates = torch.randint(_SIZE, (_FACTOR * _BATCH,), device=device)
    losses = run.step(batch)
    run.score(candidates)

    step_s: list[float] = []
    forward_s: list[float] = []
    sampling_s: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(options.rounds):
        step_s.append(_time(lambda: [run.step(batch) for _ in range(options.steps)], device) / options.steps)
        forward_s.append(_time(lambda: [run.score(candidates) for _ in range(options.steps)], device) / options.steps)
        for name, sampler in samplers.items():
            if name == "gradient_norm":
                sampler.load_state_dict({**sampler.state_dict(), "tau": torch.tensor(1e6)})
            sampling_s[name].append(_time(lambda s=sampler: _epoch(s, losses), device) / _STEPS_PER_EPOCH)
    step = statistics.median(step_s)
    sampling = {name: statistics.median(times) for name, times in sampling_s.items()}
    _print_table(options.model, device, step, statistics.median(forward_s), sampling)
    dearest = max(sampling.values()) / step
    print(f"\nThe dearest sampling takes {dearest:.2%} of a step with step_time.py's data; the limit is {_LIMIT:.0%}.")
    if shares:
        print(f"On digits, whose steps are shorter, it takes {max(shares):.2%}.")


class WatchedSampler:
    """A sampler that adds up the seconds of the process that its calls take."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.seconds = 0.0
        self.state_dict, self.load_state_dict = sampler.state_dict, sampler.load_state_dict

    def batches(self) -> Iterator[MiniBatch]:
        """Those of the sampler."""
        started = time.process_time()
        for batch in self._sampler.batches():
            self.seconds += time.process_time() - started
            yield batch
            started = time.process_time()
        self.seconds += time.process_time() - started

    def observe(self, batch: MiniBatch, losses: Tensor) -> None:
        """As the sampler does."""
        started = time.process_time()
        self._sampler.observe(batch, losses)
        self.seconds += time.process_time() - started

    def diagnostics(self) -> dict[str, float]:
        """Those of the sampler."""
        started = time.process_time()
        found = self._sampler.diagnostics()
        self.seconds += time.process_time() - started
        return found


class WatchedTraining(Training):
    """A training run that knows what its sampler takes, and what its scores take of that."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._scoring_s = 0.0
        self._sampler = self._watched = WatchedSampler(self._sampler)

    def _scores(self, indices: Tensor) -> Tensor:
        started = time.process_time()
        scores = super()._scores(indices)
        self._scoring_s += time.process_time() - started
        return scores

    def epoch_s(self) -> tuple[float, float, float]:
        """Seconds of the process that an epoch's steps, its sampling without the scores, and its scores take."""
        if "tau" in self._sampler.state_dict():
            self._sampler.load_state_dict({**self._sampler.state_dict(), "tau": torch.tensor(1e6)})
        self._watched.seconds = self._scoring_s = 0.0
        started = time.process_time()
        self._train_epochs(1)
        whole = time.process_time() - started
        sampling = self._watched.seconds - self._scoring_s
        return whole - sampling - self._scoring_s, sampling, self._scoring_s


def _small_data(model: str, rounds: int) -> float:
    """Prints what each sampling takes of training this model on digits; returns the largest share."""
    choice = {"model": model, "epochs": 10_000, "landscape": "none"}
    runs = {name: WatchedTraining(TrainConfig.from_mapping({**choice, "sampling": name})) for name in SAMPLINGS}
    for run in runs.values():
        run._train_epochs(_WARM_EPOCHS)
    epochs: Mapping[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            epochs[name].append(run.epoch_s())
    config = TrainConfig.from_mapping(choice)
    steps = -(-DATASETS[config.dataset].train_size // config.batch_size)
    step_s = min(step for times in epochs.values() for step, _, _ in times) / steps
    print(f"{model}, digits, batch {config.batch_size}, CPU, {torch.get_num_threads()} threads: ", end="")
    print(f"a step takes {1e6 * step_s:.0f} µs, sampling not counted\n")
    print("| sampling | µs a step | of the time | extra forward pass, of a step |")
    print("|---|---|---|---|")
    shares = {}
    for name, times in epochs.items():
        own_s = min(sampling for _, sampling, _ in times) / steps
        shares[name] = own_s / (step_s + own_s)
        forward = min(scores for _, _, scores in times) / steps / step_s
        print(f"| {name} | {1e6 * own_s:.1f} | {shares[name]:.2%} | {f'{forward:.1%}' if forward else 'none'} |")
    print()
    return max(shares.values())


def _run(model_name: str, device: torch.device) -> Run:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (_SIZE, *_DATASET.shape), dtype=torch.uint8, generator=generator)
    targets = torch.randint(_DATASET.classes, (_SIZE,), generator=generator)
    model = build_model(model_name, _DATASET, seed=0).to(device)
    optimizer = UnifiedSAM(
        model.parameters(), torch.optim.SGD, rho=0.05, lam=0.5, lr=0.01, momentum=0.9, fused=device.type == "cuda"
    )
    return Run(model, optimizer, images.to(device), targets.to(device))


def _sampler(name: str, run: Run, device: torch.device) -> Sampler:
    """The sampling of this name; gradient_norm's scores are looked up, so that its forward pass is timed apart."""
    generator = torch.Generator(device).manual_seed(0)
    scores = torch.rand(_SIZE, generator=generator, device=device) ** 4
    return build_sampler(
        name.partition(",")[0],
        size=_SIZE,
        batch_size=_BATCH,
        generator=generator,
        task="classification",
        smoothness=0.1 + scores,
        score=lambda indices: scores[indices],
        uniform_share=0.1,
        presample_factor=_FACTOR,
        passes=2,
    )


def _epoch(sampler: Sampler, losses: Tensor) -> None:
    for batch in sampler.batches():
        sampler.observe(batch, losses[: len(batch.indices)])
    sampler.diagnostics()


def _time(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, until the device is done with it."""
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print_table(
    model: str, device: torch.device, step_s: float, forward_s: float, sampling_s: dict[str, float]
) -> None:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model}, CIFAR-shaped, batch {_BATCH}, {where}: a Unified SAM step takes {1e3 * step_s:.2f} ms\n")
    print("| sampling | µs a step | of a step | extra forward pass, of a step |")
    print("|---|---|---|---|")
    for name, seconds in sampling_s.items():
        forward = f"{forward_s / step_s:.1%}" if name == "gradient_norm" else "none"
        print(f"| {name} | {1e6 * seconds:.1f} | {seconds / step_s:.2%} | {forward} |")


if __name__ == "__main__":
    main()
