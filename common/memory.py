"""What does not fit into the memory of this machine, said before it is tried."""

from __future__ import annotations

import os


def refuse_too_large(num_bytes: int, what: str) -> None:
    """Raise ValueError where something alone needs more bytes than the machine has in all."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not tell
        return
    if num_bytes > available:
        raise ValueError(
            f"{what} needs {num_bytes / 1e9:,.0f} GB of memory, this machine has "
            f"{available / 1e9:,.0f}: give less"
        )
