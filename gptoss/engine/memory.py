"""How much memory the key/value cache may take when the user does not say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

SEQUENCES_WANTED = 16  # of the full context length: more only serves those who ask for it
SHARE_OF_AVAILABLE = 4  # take at most one part in this many
TOKENS_NEEDED = 4096  # never less than one sequence of this length

# A GPU is there for the engine: the pool takes most of what the weights leave, the rest is for the
# arrays of a step.
SEQUENCES_ON_DEVICE = 64
SHARE_OF_DEVICE = 0.85


def default_kv_bytes(
    pages_for: Callable[[int], int], page_bytes: int, context_length: int, available: int
) -> int:
    """Bytes for 16 sequences of the full context length, or a quarter of the available memory if
    that is less.

    Never less than one sequence of 4096 tokens needs.
    """
    wanted = SEQUENCES_WANTED * pages_for(context_length) * page_bytes
    needed = pages_for(min(context_length, TOKENS_NEEDED)) * page_bytes
    return max(needed, min(wanted, available // SHARE_OF_AVAILABLE))


def device_kv_bytes(
    pages_for: Callable[[int], int], page_bytes: int, context_length: int, free: int
) -> int:
    """Bytes on a device with memory of its own: 85% of what is free, or 64 sequences of the full
    context length if that is less.
    """
    wanted = SEQUENCES_ON_DEVICE * pages_for(context_length) * page_bytes
    return min(wanted, int(free * SHARE_OF_DEVICE))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping, by the machine and by the control group."""
    found = [_machine_available(root), _group_available(root)]
    return min((amount for amount in found if amount is not None), default=1 << 30)


def _machine_available(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # not Linux: half of all memory is a careful guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _group_available(root: Path) -> int | None:
    """What a container's limit leaves (control groups, version 2, then 1)."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = root / "sys/fs/cgroup"
        try:
            return max(0, int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return None
