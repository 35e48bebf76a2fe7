"""infer.py in several processes that share its work, as torchrun starts them."""

import os
import socket

import torch
from processes import PATIENCE, context

import infer
from metric_learning.engine.embed.dump import partial


def launch(words, num_processes, sync_seconds=partial.SYNC_SECONDS):
    """Start processes as torchrun does, forked from a server that has imported torch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = sync_seconds, torch.get_num_threads()
    common = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    found = [
        context().Process(target=take_part, args=({**common, "RANK": rank}, words, *settings))
        for rank in range(num_processes)
    ]
    for process in found:
        process.start()
    return found


def take_part(place, words, sync_seconds, num_threads):
    torch.set_num_threads(num_threads)  # on which the last bits depend
    partial.SYNC_SECONDS = sync_seconds
    os.environ |= {name: str(value) for name, value in place.items()}
    infer.main(words)


def end_well(processes):
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
