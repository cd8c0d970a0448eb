"""The devices that a configuration's words mean, as far as this host has them."""

from __future__ import annotations

from pathlib import Path

import torch

from distbelief.models.stages import HOST
from distbelief.planner.costs import Device
from distbelief.replication import ReplicaConfig

GB = 10**9
_MEMINFO = Path("/proc/meminfo")


def devices_of(slot: ReplicaConfig, *, elsewhere: bool = False) -> tuple[Device, ...]:
    """The device of each stage, nothing measured; memory is what it has, or what the slot says.

    ``elsewhere`` means that stages run on other hosts, of whose memory this one cannot know.
    """
    return tuple(_device(slot.device_of(stage), slot, elsewhere) for stage in range(slot.stages))


def here(name: str) -> torch.device | None:
    """The device of that name; None if this host has none such."""
    if name == "cpu":
        return HOST
    index = int(name.partition(":")[2] or 0)
    return torch.device("cuda", index) if index < torch.cuda.device_count() else None


def available_memory(meminfo: Path = _MEMINFO) -> int | None:
    """Bytes that this host has left for processes to come; None where it does not tell."""
    if not meminfo.exists():
        return None
    values = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    said = values.get("MemAvailable", "").split()
    return int(said[0]) * 1024 if said else None


def _device(word: str, slot: ReplicaConfig, elsewhere: bool) -> Device:
    name = ("cuda" if torch.cuda.is_available() else "cpu") if word == "auto" else word
    if slot.device_memory_gb is not None:
        memory: int | None = int(slot.device_memory_gb * GB)
    elif elsewhere:
        memory = None
    elif name == "cpu":
        memory = available_memory()
    else:
        device = here(name)
        memory = None if device is None else torch.cuda.get_device_properties(device).total_memory
    return Device(name=name, memory=memory, is_host=name == "cpu")
