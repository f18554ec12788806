"""Workers of one process: each a thread, their messages passed through queues, every byte counted."""

import queue
import threading
from collections import defaultdict

import torch

from get3d_cluster.dist.network import Network


class Board:
    """What the workers of a test share."""

    def __init__(self, world_size):
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.gathered = [None] * world_size
        self._queues = {}
        self.sent_bytes = defaultdict(int)
        self.lock = threading.Lock()

    def queue(self, *key):
        with self.lock:
            return self._queues.setdefault(key, queue.SimpleQueue())


class MemoryGroup:
    def __init__(self, rank, board):
        self.rank, self.world_size, self.board = rank, board.world_size, board

    def all_gather(self, tensor):
        return [item.clone() for item in self._gather(tensor.clone())]

    def any(self, flags):
        return [any(column) for column in zip(*self._gather(list(flags)), strict=True)]

    def broadcast(self, value):
        return self._gather(value)[0]

    def wait(self, arrival):
        return arrival()

    def close(self):
        pass

    def _gather(self, value):
        self.board.gathered[self.rank] = value
        self.board.barrier.wait()
        values = list(self.board.gathered)
        self.board.barrier.wait()
        return values


def network_of(group, config=None, **options):
    """Return a network whose wire is memory."""
    plain = getattr(group, "_group", group)
    return Network(group, config, opener=lambda via: MemoryWire(plain.rank, plain.board), **options)


class MemoryWire:
    def __init__(self, rank, board):
        self.rank, self.board = rank, board

    def start(self, sends, receives, lane):
        board = self.board
        for peer, tensor in sends:
            with board.lock:
                board.sent_bytes[self.rank, peer] += tensor.numel() * tensor.element_size()
            board.queue(self.rank, peer, lane).put(tensor.clone())
        sent = [_Arrival(None, None)] * len(sends)
        return sent, [_Arrival(board.queue(peer, self.rank, lane), tensor) for peer, tensor in receives]


class _Arrival:
    def __init__(self, waiting, tensor):
        self.waiting, self.tensor = waiting, tensor

    def wait(self):
        if self.waiting is not None:
            message = self.waiting.get(timeout=60)
            assert (message.shape, message.dtype) == (self.tensor.shape, self.tensor.dtype)
            self.tensor.copy_(message)


def on_all(world_size, work):
    """Run ``work(group)`` on each worker; return the results by rank, and the board."""
    board, results, errors = Board(world_size), [None] * world_size, []

    def run(rank):
        try:
            results[rank] = work(MemoryGroup(rank, board))
        except BaseException as error:
            errors.append(error)
            board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results, board


def parameters(sizes):
    return [(f"p{i}", torch.nn.Parameter(torch.zeros(size))) for i, size in enumerate(sizes)]
