"""Several gloo processes on this machine, and what each of them returns."""

import multiprocessing
import os
import socket
import traceback

import torch

from vpretrain.system import distributed

FORK = multiprocessing.get_context("fork")


def free_port():
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


def _process(rank, world, port, function, arguments, results):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        with distributed.process_group():
            results.put((rank, function(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def together(world, function, *arguments):
    """What ``function(*arguments)`` returns on each of ``world`` processes, by rank; the first
    error is raised here.
    """
    results, port = FORK.Queue(), free_port()
    processes = [
        FORK.Process(target=_process, args=(r, world, port, function, arguments, results))
        for r in range(world)
    ]
    for process in processes:
        process.start()
    try:
        result = {}
        for _ in processes:
            rank, value, error = results.get(timeout=120)
            assert error is None, f"process {rank} of {world}:\n{error}"
            result[rank] = value
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()
    return [result[rank] for rank in range(world)]
