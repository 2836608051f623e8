"""Whether a model's weights fit this machine, from the sizes of its files, before any is read.

Torch is imported on use.
"""

from __future__ import annotations

from pathlib import Path

from hf_align.hub.loading import Home
from hf_align.types import InputError

ROOM = 1.1
"""Memory asked for per byte of weights: activations, keys and values, and copies while loading."""

_CGROUP = Path("/sys/fs/cgroup")


def weight_bytes(home: Home) -> int:
    """Bytes of the weights that loading it would read; 0 where they are not known."""
    top = {path: size for path, size in home.sizes.items() if "/" not in path}
    if "model.safetensors" in top:
        return top["model.safetensors"] or 0
    shards = [path for path in top if path.startswith("model") and path.endswith(".safetensors")]
    # Of an ensemble of reward models, its members'.
    shards = shards or [path for path in home.sizes if path.endswith("/model.safetensors")]
    return sum(home.sizes[path] or 0 for path in shards)


def free_bytes(device: str) -> int:
    """Bytes that weights may take on a device: what is free now, of this container's share."""
    import psutil
    import torch

    free = min(psutil.virtual_memory().available, _container_free())
    if torch.device(device).type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])  # it is read into memory first
    return free


def check_fits(home: Home, device: str) -> None:
    """Refuses weights that are larger than what is free.

    Raises:
        InputError: Says both sizes.
    """
    need, free = weight_bytes(home), free_bytes(device)
    if need * ROOM > free:
        raise InputError(
            f"{home.label} is too large for this machine: its weights have {need / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB of memory are free; choose a smaller model or more memory"
        )


def _container_free() -> float:
    """What a container's limit leaves; infinite without one."""
    limit, used, facts = (_CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file() and facts.is_file()):
        return float("inf")
    most = limit.read_text().strip()
    if most == "max":
        return float("inf")
    # Files that were read count as used, and make room when memory is asked for.
    cached = next(
        int(line.split()[1])
        for line in facts.read_text().splitlines()
        if line.startswith("inactive_file ")
    )
    return int(most) - int(used.read_text()) + cached
