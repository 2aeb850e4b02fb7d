"""How much to compute here: a few seconds in CI, minutes on a CPU, the real thing on a GPU.

Chapter: 0 (`notebooks/00-start.ipynb`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")
PROFILES = ("ci", "cpu", "gpu")


@dataclass(frozen=True)
class Profile:
    """A profile's name and the device to use with it.

    Chapter: 0
    """

    name: str
    device: str

    def pick(self, *, ci: T, cpu: T, gpu: T) -> T:
        """Choose the value for this profile: `profile.pick(ci=1, cpu=20, gpu=100)`. Chapter: 0."""
        return {"ci": ci, "cpu": cpu, "gpu": gpu}[self.name]


def choose_profile() -> Profile:
    """Choose a profile from `$VITMINI_PROFILE` or else from the hardware, and print which.

    Raises: `ValueError` for an unknown profile, or `gpu` where there is no CUDA device.
    Chapter: 0
    """
    cuda = torch.cuda.is_available()
    name = os.environ.get("VITMINI_PROFILE") or ("gpu" if cuda else "cpu")
    if name not in PROFILES:
        raise ValueError(f"VITMINI_PROFILE must be one of {', '.join(PROFILES)}, got {name!r}")
    if name == "gpu" and not cuda:
        raise ValueError("VITMINI_PROFILE is gpu, but PyTorch finds no CUDA device: use cpu")
    profile = Profile(name, "cuda" if name == "gpu" else "cpu")
    print(f"vitmini profile: {profile.name}, on {device_name(profile.device)}")
    return profile


def device_name(device: str | torch.device, threads: int | None = None) -> str:
    """Say in words what a device is, as results and chapters record it.

    `threads` is the number that was used on a CPU (default: the number PyTorch uses now).
    Chapter: 0
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = threads or torch.get_num_threads()
    return f"{torch.device(device).type.upper()} ({threads} thread{'s' * (threads != 1)})"
