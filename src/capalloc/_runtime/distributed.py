"""Exchanges between the processes of one measurement, each of which has its share of the examples.

`Local` is a process of its own, `Group` a rank of a `torch.distributed` process group; what both do is in `Reducer`.
All ranks call the same methods in the same order. Sums are added in the order of the ranks and in the tensor's own
dtype, so that a run repeats itself, and every rank has the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from capalloc._runtime.heartbeat import Heartbeat, RankError, call_store, store_errors
from capalloc._runtime.packing import as_bytes, pack, unpack

#: True for the default process group, which the caller has initialised.
Distributed = bool | ProcessGroup


class Reducer(Protocol):
    """The processes of a run."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def shard(self, count: int) -> slice:
        """Return the part of `count` examples that this process has."""

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum over processes, on all of them."""

    def fold(self, part: Any, merge: Callable[[Any, Any], Any]) -> Any:
        """Return all parts merged, in the order of the ranks, on rank 0; None elsewhere."""

    def share(self, value: Any) -> Any:
        """Return the value of rank 0, on all."""

    def check(self) -> None:
        """Raise what is wrong with another process."""


class Local:
    """One process has all examples."""

    rank, size = 0, 1

    def shard(self, count: int) -> slice:
        return slice(0, count)

    def sum(self, part: Tensor) -> Tensor:
        return part

    def fold(self, part: Any, merge: Callable[[Any, Any], Any]) -> Any:
        return part

    def share(self, value: Any) -> Any:
        return value

    def check(self) -> None:
        """Do nothing: there is no other process."""


class Group:
    """One rank of a process group, for one call of the library; made by `joined`.

    Data travel by the group's own backend, on the CPU where that is one for CPU tensors only.
    """

    def __init__(self, group: ProcessGroup, heartbeat: Heartbeat, types: tuple[type, ...]) -> None:
        self._group, self._heartbeat, self._types = group, heartbeat, types
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def shard(self, count: int) -> slice:
        """Return contiguous parts whose sizes differ by one at most; empty ones for more ranks than examples."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, part: Tensor) -> Tensor:
        """Add one piece of the parts on each rank, in the order of the ranks, and hand it to all."""
        flat = self._carried(part.flatten())
        width = -(-flat.numel() // self.size)
        pieces = flat.new_zeros(self.size * width)
        pieces[: flat.numel()] = flat
        received, whole = torch.empty_like(pieces), torch.empty_like(pieces)
        self._exchange(lambda: dist.all_to_all_single(received, pieces, group=self._group, async_op=True))
        piece = received.view(self.size, width).sum(0)
        self._exchange(lambda: dist.all_gather_single(whole, piece, group=self._group, async_op=True))
        return whole[: flat.numel()].view(part.shape).to(part.device)

    def fold(self, part: Any, merge: Callable[[Any, Any], Any]) -> Any:
        """Merge along a tree: neighbours, then neighbours of those."""
        step = 1
        while step < self.size:
            sends = self.rank % (2 * step) == step
            receives = self.rank % (2 * step) == 0 and self.rank + step < self.size
            other = self._passed(part if sends else None, self.rank - step, self.rank + step if receives else None)
            part = merge(part, other) if receives else None if sends else part
            step *= 2
        return part if self.rank == 0 else None

    def share(self, value: Any) -> Any:
        """Broadcast tensors as they are and the rest as JSON."""
        tensors: list[Tensor] = []
        head = _encoded(value, tensors) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
        length = self._broadcast(torch.tensor([head.numel()]))
        head = self._broadcast(head if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8))
        tree, blanks = _decoded(head)
        filled = [self._broadcast(t) for t in (tensors if self.rank == 0 else blanks)]
        return value if self.rank == 0 else unpack(tree, filled, self._types)

    def check(self) -> None:
        """Raise the first error of any rank, or name one that is gone."""
        self._heartbeat.check()

    def _broadcast(self, tensor: Tensor) -> Tensor:
        carried = self._carried(tensor)
        data = as_bytes(carried)
        self._exchange(lambda: dist.broadcast(data, group=self._group, group_src=0, async_op=True))
        return data.view(carried.dtype).view(carried.shape).to(tensor.device)

    def _passed(self, value: Any, to: int, source: int | None) -> Any:
        """Pass `value`, if it is not None, to one rank, and return what `source` passes."""
        tensors: list[Tensor] = []
        head = torch.empty(0, dtype=torch.uint8) if value is None else _encoded(value, tensors)
        body = [as_bytes(t.cpu()) for t in tensors]
        sizes = self._carried(torch.tensor([head.numel(), sum(len(b) for b in body)]))
        table = sizes.new_empty(self.size * 2)
        self._exchange(lambda: dist.all_gather_single(table, sizes, group=self._group, async_op=True))
        outgoing, incoming = [0] * self.size, [0] * self.size
        if value is not None:
            outgoing[to] = int(sizes.sum())
        if source is not None:
            incoming[source] = int(table.view(-1, 2)[source].sum())
        sent = self._carried(torch.cat([head, *body]))
        received = sent.new_empty(sum(incoming))
        self._exchange(
            lambda: dist.all_to_all_single(received, sent, incoming, outgoing, group=self._group, async_op=True)
        )
        if source is None:
            return None
        return self._read(received.cpu(), int(table.view(-1, 2)[source, 0]))

    def _read(self, received: Tensor, length: int) -> Any:
        tree, blanks = _decoded(received[:length])
        filled = []
        for blank in blanks:
            stop = length + blank.numel() * blank.element_size()
            filled.append(received[length:stop].clone().view(blank.dtype).view(blank.shape).to(blank.device))
            length = stop
        return unpack(tree, filled, self._types)

    def _exchange(self, start: Callable[[], Any]) -> None:
        """Run one collective that all ranks have come to, or raise an error on all."""
        self._heartbeat.meet()
        try:
            work = start()
            self._heartbeat.wait(work.is_completed)
            work.wait()
        except RankError:
            raise
        except RuntimeError as error:
            raise self._heartbeat.explain(error) from error

    def _carried(self, tensor: Tensor) -> Tensor:
        served = set(dict(_pairs(dist.get_backend_config(self._group))))
        if tensor.device.type in served:
            return tensor.contiguous()
        return tensor.contiguous().to("cpu" if "cpu" in served else torch.device("cuda", torch.cuda.current_device()))


@contextmanager
def joined(
    distributed: Distributed, types: tuple[type, ...] = (), silence: float = 10.0, arrival: float = 20.0
) -> Iterator[Reducer]:
    """Give the processes that share the work within the block; an error in one of them is an error in all.

    Args:
        distributed: False for this process alone, True for the default process group, or a group of it.
        types: dataclasses that may travel.
        silence: seconds without a sign of life after which a rank is taken for dead.
        arrival: seconds that ranks may take to arrive.

    Raises:
        RankError: on the other ranks, when one fails, dies or hangs.
        ValueError: no process group is initialised, or this process is no member of it.

    """
    if distributed is False:
        yield Local()
        return
    group = _group_of(distributed)
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    with store_errors():
        heartbeat = Heartbeat(call_store(group.get_group_store(), rank), rank, size, silence, arrival)
    try:
        yield Group(group, heartbeat, types)
        heartbeat.meet()
    except BaseException as error:
        heartbeat.fail(f"rank {rank} failed with {type(error).__name__}: {error}")
        raise
    finally:
        heartbeat.close()


def check_group(distributed: object) -> None:
    """Raise TypeError where a value names no group of processes."""
    if not isinstance(distributed, (bool, ProcessGroup)) and distributed is not dist.GroupMember.NON_GROUP_MEMBER:
        raise TypeError(f"distributed must be True, False or a process group, got {type(distributed).__name__}")


def _group_of(distributed: object) -> ProcessGroup:
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "distributed=True needs a process group: call torch.distributed.init_process_group() first, in a script "
            "that torchrun starts"
        )
    group = dist.group.WORLD if distributed is True else distributed
    if not isinstance(group, ProcessGroup) or dist.get_rank(group) < 0:
        raise ValueError("distributed is a process group that this process is no member of; call on its members only")
    return group


def _pairs(config: str) -> list[tuple[str, str]]:
    """Return device types and their backends, from "cpu:gloo,cuda:nccl"."""
    return [(device, backend) for device, _, backend in (pair.partition(":") for pair in config.split(","))]


def _encoded(value: Any, tensors: list[Tensor]) -> Tensor:
    """Return JSON of everything but the tensors' content."""
    tree = pack(value, tensors)
    shapes = [[list(t.shape), str(t.dtype).removeprefix("torch."), t.device.type] for t in tensors]
    return torch.frombuffer(bytearray(json.dumps([tree, shapes]).encode()), dtype=torch.uint8)


def _decoded(head: Tensor) -> tuple[Any, list[Tensor]]:
    """Return the tree, and tensors to be filled, on this process's own device of that type."""
    tree, shapes = json.loads(bytes(head.cpu().numpy()))
    return tree, [torch.empty(shape, dtype=getattr(torch, dtype), device=device) for shape, dtype, device in shapes]
