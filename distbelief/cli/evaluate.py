"""``distbelief evaluate RUN_OR_FILE...``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from distbelief.cli.options import parsed
from distbelief.errors import ConfigError, UsageError
from distbelief.product.evaluate import Evaluation, evaluate
from distbelief.product.images import open_images
from distbelief.product.weights import load

WORST = 5
"""So many classes are listed."""
MAX_LOADERS = 8


@dataclass(frozen=True)
class Options:
    """Evaluates a trained model, or several whose predictions are averaged."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, or .safetensors files that runs have written; several make an ensemble."""
    data: str | None = None
    """Folder with val/CLASS/*.jpg; by default the images that the first run was trained with."""
    dataset: str | None = None
    """Data sets by import path, package.module:function, in place of --data."""
    crops: int = 1
    """Crops of each image whose predictions are averaged: 1, 10 or 144."""
    weights: Literal["averaged", "latest"] = "averaged"
    """Which weights of a run's folder."""
    batch_size: int = 32
    """Crops in one forward pass."""
    loaders: int | None = None
    """Processes that decode images; by default one less than there are cores, 8 at most."""
    device: str = "auto"
    """Device of the networks: cpu, cuda, or auto."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of the networks; auto is bf16 where the device has it."""
    threads: int | None = None
    """Threads of the networks; by default as many as there are cores."""
    split: Literal["val", "train"] = "val"
    """Which images."""
    json: bool = False
    """Print all figures as JSON, with each class and the confusion matrix."""


def main(arguments: Sequence[str]) -> int:
    """Evaluates; prints a short table, or everything as JSON."""
    options = parsed(Options, arguments, "evaluate")
    if not options.sources:
        raise UsageError("name a run's folder or a file of weights: distbelief evaluate RUN")
    cores = len(os.sched_getaffinity(0))
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError("threads", f"must be at least 1, not {options.threads}")
        torch.set_num_threads(options.threads)
    models = [load(source, options.weights) for source in options.sources]
    images = open_images(models, data=options.data, dataset=options.dataset, split=options.split)
    default_loaders = min(MAX_LOADERS, max(1, cores - 1))
    result = evaluate(
        models,
        images,
        crops=options.crops,
        batch_size=options.batch_size,
        n_loaders=default_loaders if options.loaders is None else options.loaders,
        device=options.device,
        precision=options.precision,
        progress=_progress if sys.stderr.isatty() else None,
    )
    print(json.dumps(result.to_dict()) if options.json else _table(result), flush=True)
    return 0


def _progress(done: int, n: int) -> None:
    end = "\r\033[K" if done == n else ""
    print(f"\r{done:,} of {n:,} images{end}", end="", file=sys.stderr, flush=True)


def _table(result: Evaluation) -> str:
    lines = [f"{'top-1':>8} {'top-5':>8} {'loss':>8}"]
    if len(result.models) > 1:
        lines += [_row(one.top1, one.top5, one.loss, one.name) for one in result.models]
        lines.append(_row(result.top1, result.top5, result.loss, "all together"))
    else:
        lines.append(_row(result.top1, result.top5, result.loss, result.models[0].name))
    seen = [
        (found.top1, name, found.n)
        for name, found in zip(result.class_names, result.classes, strict=True)
        if found.top1 is not None
    ]
    worst = sorted(seen)[:WORST]
    lines.append("worst classes: " + ", ".join(f"{name} {top1:.1%}" for top1, name, _ in worst))
    crops = "the central crop" if result.crops == 1 else f"{result.crops} crops"
    lines.append(
        f"{result.n_examples:,} images, {crops} of each, {result.weights} weights, in "
        f"{result.seconds:.1f} s ({result.images_per_second:,.1f} images/s)"
    )
    if result.skipped:
        counted = "1 image was" if result.skipped == 1 else f"{result.skipped:,} images were"
        lines.append(f"{counted} skipped as unreadable:")
        lines += [f"  {name}" for name in result.skipped_images]
    return "\n".join(lines)


def _row(top1: float, top5: float, loss: float, name: str) -> str:
    return f"{top1:>8.2%} {top5:>8.2%} {loss:>8.4f}  {name}"
