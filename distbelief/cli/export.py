"""``distbelief export RUN_OR_FILE``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from distbelief.cli.options import parsed
from distbelief.product.export import export
from distbelief.product.weights import load


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a trained model for other programs, and compares its outputs with the source's."""

    source: tyro.conf.Positional[str]
    """A run's folder, or a .safetensors file that a run has written."""
    output: Path
    """The file to write."""
    format: Literal["safetensors", "onnx"] = "safetensors"
    """safetensors: the weights by name; onnx: the whole network."""
    weights: Literal["averaged", "latest"] = "averaged"
    """Which weights of a run's folder."""
    overwrite: bool = False
    """Replace the file if it is there."""
    json: bool = False
    """Print the figures as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Exports; prints the size of the file and how far its outputs are from the source's."""
    options = parsed(Options, arguments, "export")
    trained = load(options.source, options.weights)
    result = export(trained, options.output, options.format, overwrite=options.overwrite)
    if options.json:
        figures = {**asdict(result), "path": str(result.path), "weights": trained.weights}
        print(json.dumps(figures))
        return 0
    print(
        f"{result.path}: {result.nbytes:,} bytes, {trained.weights} weights; largest relative "
        f"error of its outputs {result.max_relative_error:.1e}"
    )
    return 0
