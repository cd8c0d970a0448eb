"""The layout: names ↔ ranges of one flat vector ↔ shards.

A model's trainable parameters lie one after another in ``named_parameters()`` order. The layout
holds plain values only, so that shards and the coordinator know it without the model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from distbelief.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of elements that share a rate multiplier and a decay multiplier."""

    begin: int
    end: int
    rate: float
    decay: float


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: elements ``[begin, end)`` of the flat vector, seen with ``stride``."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    begin: int
    end: int
    rate: float
    decay: float


@dataclass(frozen=True)
class Layout:
    """All parameters of a model in one flat vector of ``size`` float32 elements."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(
        cls, named_parameters: Iterable[tuple[str, torch.Tensor]], *, bias_rate: float = 1.0
    ) -> Layout:
        """The layout of a model.

        Biases and other one-dimensional parameters (the scales of normalisation) have no weight
        decay; those named ``bias`` have ``bias_rate`` times the learning rate.

        Args:
            named_parameters: Names and tensors in order; frozen ones are left out.
            bias_rate: Learning-rate multiplier of biases.
        """
        parameters = []
        begin = 0
        for name, tensor in named_parameters:
            if not tensor.requires_grad:
                continue
            end = begin + tensor.numel()
            is_bias = name.rpartition(".")[2] == "bias"
            parameters.append(
                Parameter(
                    name=name,
                    shape=tuple(tensor.shape),
                    stride=_dense_stride(tensor),
                    begin=begin,
                    end=end,
                    rate=bias_rate if is_bias else 1.0,
                    decay=0.0 if is_bias or tensor.dim() <= 1 else 1.0,
                )
            )
            begin = end
        if not parameters:
            raise ConfigError("model", "has no trainable parameters")
        return cls(tuple(parameters))

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return self.parameters[-1].end

    @cached_property
    def fingerprint(self) -> str:
        """A digest that two processes share exactly if their layouts are equal."""
        return hashlib.sha256(json.dumps(self.to_list()).encode()).hexdigest()[:16]

    def shard_ranges(self, n_shards: int) -> list[tuple[int, int]]:
        """Ranges of elements, one a shard, whose sizes differ by one at most."""
        if n_shards > self.size:
            raise ConfigError("shards", f"{n_shards} shards for {self.size} parameters; take fewer")
        cuts = [i * self.size // n_shards for i in range(n_shards + 1)]
        return list(itertools.pairwise(cuts))

    def segments(self, begin: int, end: int) -> tuple[Segment, ...]:
        """What differs by range within ``[begin, end)``; neighbours that agree are one.

        Segments count from ``begin``.
        """
        found: list[Segment] = []
        for p in self.parameters:
            low, high = max(p.begin, begin) - begin, min(p.end, end) - begin
            if low >= high:
                continue
            last = found[-1] if found else None
            if last and (last.rate, last.decay) == (p.rate, p.decay):
                found[-1] = Segment(last.begin, high, p.rate, p.decay)
            else:
                found.append(Segment(low, high, p.rate, p.decay))
        return tuple(found)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each parameter as a strided view into ``flat``, ``(size,)``."""
        return {
            p.name: flat.as_strided(p.shape, p.stride, flat.storage_offset() + p.begin)
            for p in self.parameters
        }

    def part(self, names: Collection[str]) -> Layout:
        """The layout of some of the parameters, joined, in a vector of their own."""
        found, begin = [], 0
        for p in self.parameters:
            if p.name in names:
                end = begin + p.end - p.begin
                found.append(replace(p, begin=begin, end=end))
                begin = end
        return Layout(tuple(found))

    def ranges(self, names: Collection[str]) -> list[tuple[int, int]]:
        """Where these parameters lie in the flat vector; neighbours are joined."""
        found: list[tuple[int, int]] = []
        for p in self.parameters:
            if p.name not in names:
                continue
            if found and found[-1][1] == p.begin:
                found[-1] = (found[-1][0], p.end)
            else:
                found.append((p.begin, p.end))
        return found

    def to_list(self) -> list[list[Any]]:
        """Plain values for JSON."""
        return [[p.name, list(p.shape), list(p.stride), p.rate, p.decay] for p in self.parameters]


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's stride if its elements lie without gaps, else the contiguous one."""
    by_stride = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    expected = 1
    for stride, size in by_stride:
        if size == 1:
            continue
        if stride != expected:
            contiguous = []
            step = 1
            for length in reversed(tensor.shape):
                contiguous.append(step)
                step *= length
            return tuple(reversed(contiguous))
        expected *= size
    return tuple(tensor.stride())
