"""What a step of Unified SAM costs: its time over that of an SGD step, side by side with other implementations.

    pip install 'samstudy[benchmark]'      # for pytorch_optimizer; without it that column is left out
    python benchmarks/step_time.py

Every contestant trains its own copy of the model on the same batch, with the same settings of SGD and its fused
kernels, in rounds: each round times one after the other, beginning with another one each time, and the ratio of a round
is taken within it. Printed are medians over the rounds, of which small models get three times as many, and ours over
each of the others, paired within the rounds, with a 95 % interval of that median (by order statistics).

Not every contestant gives the same. Ours and pytorch_optimizer write the weights back into their own memory, which the
textbook loop replaces by the memory of its copies. Ours alone skips a step where a gradient is not finite.

Two forward-backward passes make 2.0; Unified SAM has to stay within 2.05 on the convolutional networks. On CUDA the
script also compiles the models, and says which share of the device's matrix product peak (measured here, bfloat16) the
floating-point operations of forward and backward come to.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from scipy.stats import quantile_test
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_pass_loops import CONTESTANTS, Step

from trainers.catalog import DATASETS
from trainers.models import build_model

BATCH_SIZES = {
    "cpu": {"mlp": 128, "small_cnn": 64, "preact_resnet18": 32, "wrn_28_10": 8},
    "cuda": {"mlp": 128, "small_cnn": 128, "preact_resnet18": 512, "wrn_28_10": 256},
}
COMPILE_MODES = {"cpu": ("none",), "cuda": ("none", "default", "reduce-overhead")}
OURS = "Unified SAM"
SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
MEASURE_S = 0.3
"""A round's time for one contestant, at least: small models take many steps in it."""


@dataclass(frozen=True)
class Row:
    """One model: milliseconds of a step of each contestant, and ratios to SGD, both medians over the rounds.

    to_peers: Unified SAM over each of the others, and the ends of the interval; below 1 it is the faster one.
    peak_share: of Unified SAM's step, in [0, 1]; None on the CPU.
    """

    model: str
    compile_mode: str
    batch_size: int
    step_ms: dict[str, float]
    ratios: dict[str, float]
    to_peers: dict[str, tuple[float, float, float]]
    images_per_s: float
    peak_share: float | None


def main() -> None:
    """Prints the machine and one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--models", nargs="+", default=list(BATCH_SIZES["cpu"]))
    parser.add_argument("--batch-size", type=int, help="of every model; by default smaller for larger models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads of torch; by default as many as it takes")
    parser.add_argument("--compile", nargs="+", choices=("none", "default", "reduce-overhead", "max-autotune"))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    device = torch.device(name)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    peak = matmul_peak(device) if name == "cuda" else None
    print(machine(device, peak), flush=True)
    rows = []
    for model in options.models:
        for mode in options.compile or COMPILE_MODES[name]:
            batch_size = options.batch_size or BATCH_SIZES[name].get(model, 32)
            rows.append(measure(model, batch_size, device, mode, rounds=options.rounds, peak=peak))
            print(f"  {model}, {mode}: {rows[-1].ratios}", flush=True)
    print(table(rows))
    if options.json:
        record = {"machine": machine(device, peak), "rounds": options.rounds, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def measure(name: str, batch_size: int, device: torch.device, mode: str, *, rounds: int, peak: float | None) -> Row:
    """Times every contestant on this model."""
    steps: dict[str, Step] = {}
    for contestant, build in CONTESTANTS.items():
        if contestant == "pytorch_optimizer SAM" and find_spec("pytorch_optimizer") is None:
            continue
        model, backward = task(name, batch_size, device, mode)
        steps[contestant] = build(model, backward, **SETTINGS, fused=True)
    counts = {}
    for contestant, step in steps.items():
        for _ in range(3 if device.type == "cuda" else 1):  # compilation, autotuning, first states
            step()
        counts[contestant] = max(1, round(MEASURE_S / seconds_per_step(step, 1, device)))
    times: dict[str, list[float]] = {contestant: [] for contestant in steps}
    for number in range(rounds if counts["SGD"] == 1 else 3 * rounds):
        names = list(steps)
        for contestant in names[number % len(names) :] + names[: number % len(names)]:
            times[contestant].append(seconds_per_step(steps[contestant], counts[contestant], device))
    ratios = {
        contestant: statistics.median(one / sgd for one, sgd in zip(of_one, times["SGD"], strict=True))
        for contestant, of_one in times.items()
        if contestant != "SGD"
    }
    to_peers = {
        contestant: median_and_interval([ours / theirs for ours, theirs in zip(times[OURS], of_one, strict=True)])
        for contestant, of_one in times.items()
        if contestant not in ("SGD", OURS)
    }
    medians = {contestant: statistics.median(of_one) for contestant, of_one in times.items()}
    ours_s = medians[OURS]
    share = None if peak is None else 2 * operations(name, batch_size, device) / ours_s / peak
    steps.clear()
    gc.collect()
    return Row(
        model=name,
        compile_mode=mode,
        batch_size=batch_size,
        step_ms={contestant: 1000 * seconds for contestant, seconds in medians.items()},
        ratios=ratios,
        to_peers=to_peers,
        images_per_s=batch_size / ours_s,
        peak_share=share,
    )


def task(name: str, batch_size: int, device: torch.device, mode: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model and the forward and backward of one batch through it; on CUDA in bfloat16 and channels last."""
    facts = DATASETS["cifar10"]
    model = build_model(name, facts, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch_size, *facts.shape, generator=generator).to(device)
    targets = torch.randint(facts.classes, (batch_size,), generator=generator).to(device)
    is_cuda = device.type == "cuda"
    if is_cuda:
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    forward = model if mode == "none" else torch.compile(model, mode=mode)

    def backward() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16) if is_cuda else nullcontext():
            outputs = forward(inputs)
        loss = nn.functional.cross_entropy(outputs.float(), targets)
        loss.backward()
        return loss

    return model, backward


def median_and_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and its 95 % interval; of fewer than six values there is none, and its ends are not a number."""
    interval = quantile_test(values, p=0.5).confidence_interval(0.95)
    return statistics.median(values), float(interval.low), float(interval.high)


def seconds_per_step(step: Step, count: int, device: torch.device) -> float:
    """Mean time of so many steps, on the device's own clock where it has one."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - started) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / count


def operations(name: str, batch_size: int, device: torch.device) -> float:
    """Floating-point operations of one forward and backward pass, those of matrix products and convolutions."""
    _, backward = task(name, batch_size, device, "none")
    with FlopCounterMode(display=False) as counter:
        backward()
    return float(counter.get_total_flops())


def matmul_peak(device: torch.device, size: int = 8192, count: int = 20) -> float:
    """Floating-point operations per second of a large matrix product in bfloat16, the best of several rounds."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [seconds_per_step(lambda: left @ right, count, device) for _ in range(5)]
    return 2 * size**3 / min(seconds)


def machine(device: torch.device, peak: float | None) -> str:
    """What the numbers were taken on."""
    if device.type == "cuda" and peak is not None:
        what = f"{torch.cuda.get_device_name(device)}, matrix product peak {peak / 1e12:.0f} TFLOP/s in bfloat16"
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        what = (
            f"{processor or platform.processor()}, {cores} cores, {torch.get_num_threads()} threads of torch, float32"
        )
    return f"{what}; torch {torch.__version__}, Python {platform.python_version()}"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    contestants = list(rows[0].ratios)
    peers = list(rows[0].to_peers)
    header = ["model", "compiled", "batch", "SGD step, ms", *(f"{name} ÷ SGD" for name in contestants)]
    header += [*(f"ours ÷ {name}" for name in peers), "images/s"]
    has_share = rows[0].peak_share is not None
    lines = [[*header, *(["share of peak"] if has_share else [])]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        ratios = [f"{row.ratios[name]:.3f}" for name in contestants]
        share = [] if row.peak_share is None else [f"{row.peak_share:.0%}"]
        cells = [row.model, row.compile_mode, str(row.batch_size), f"{row.step_ms['SGD']:.2f}"]
        to_peers = ["{:.3f} ({:.3f} to {:.3f})".format(*row.to_peers[name]) for name in peers]
        lines.append([*cells, *ratios, *to_peers, f"{row.images_per_s:.0f}", *share])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
