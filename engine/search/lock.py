"""Who may write an index: one command at a time.

Of two that build it the second one is refused, for both would work for hours, and one of them in
vain. Who changes it waits until it is there. A file of Milvus Lite is one process's anyway, which
Milvus sees to; what several commands do to a server's database is not kept apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from metric_learning.common.locks import claimed, locked
from metric_learning.common.log import log
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.engine.parallel.world import World
from metric_learning.retrieval.milvus_client import is_milvus


@contextlib.contextmanager
def build_lock(index: str, world: World) -> Iterator[None]:
    """Hold an index that is built, by the first of the processes that share the work.

    Raises ValueError, in all of them, where another command builds or changes it.
    """
    with contextlib.ExitStack() as held:
        if not is_milvus(index):
            refusal = (
                f"--index={index}: another command is building or changing it: wait for it, or "
                "choose another name for yours"
            )
            claim = claimed(lock_of(index), refusal, is_kept=False)
            decide_on_main(world, lambda: held.enter_context(claim))
        yield


@contextlib.contextmanager
def change_lock(index: str) -> Iterator[None]:
    """Hold an index that is changed; waits, and says so, while another command has it."""
    if is_milvus(index):
        yield
        return
    reason = f"{index} is being built or changed by another command"
    with locked(lock_of(index), log, reason, is_kept=False):
        yield


def lock_of(index: str) -> Path:
    """Return the file that is locked, beside the index, wherever links to that lie."""
    file = Path(os.path.realpath(index))
    return file.with_name(f".{file.name}.lock")
