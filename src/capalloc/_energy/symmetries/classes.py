"""Channels around a weight that serves several positions: one class of labels for each distinct set that it reads.

Index convention: k classes, g groups of a grouped map, o outputs and j entries read in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capalloc._energy.symmetries.labels import NOTHING, Channels, narrowed


@dataclass(frozen=True)
class PositionClasses:
    """Labels that positions read, by class: position p has the labels read[place[p]]."""

    read: Tensor  # (classes, entries)
    place: Tensor  # broadcastable to the positions


def positions(channels: Channels, labels: Tensor, outputs: int) -> PositionClasses:
    """Group positions, all axes of the labels but the last, by the labels they read."""
    shape = labels.shape
    dims = range(labels.ndim - 1)
    (labels,) = narrowed(labels, dims=dims)
    if labels.shape[:-1].numel() > 1:
        (labels,) = narrowed(channels.canonical(labels), dims=dims)
    rows = labels.reshape(-1, shape[-1]).contiguous()
    packed = rows.numpy().view(np.dtype((np.void, 8 * shape[-1]))).reshape(-1)
    _, first, place = np.unique(packed, return_index=True, return_inverse=True)
    if len(first) > 1 and len(first) * outputs > channels.limits.classes:
        merged = channels.merge(labels, labels.shape, tuple(dims), forced=True)
        return PositionClasses(merged.reshape(1, -1), torch.zeros([1] * len(dims), dtype=torch.long))
    # The class that carries most comes first: it stands for the others where one has to.
    order = np.argsort(-(rows[first] > NOTHING).sum(1).numpy(), kind="stable")
    rank = np.argsort(order)
    return PositionClasses(rows[first[order]], torch.from_numpy(rank[place.reshape(-1)]).reshape(labels.shape[:-1]))


def share(channels: Channels, read: Tensor, squares: Tensor) -> Tensor:
    """Labels (k, g, o) that a free weight writes in every class, related as its sharing asks.

    Args:
        channels: where labels and relations are kept.
        read: labels read, (k, g, j).
        squares: of the weights, (g, o, j).

    """
    written = channels.fresh((len(read), *squares.shape[:2]))
    if len(read) > 1:
        channels.serve(written, read, (squares > 0).cpu())
    return written


def share_entries(channels: Channels, labels: Tensor, used: Tensor) -> tuple[tuple[tuple[Tensor, Tensor], ...], Tensor]:
    """Labels around an elementwise weight: (read, written) for each class, and the labels of the product.

    Args:
        channels: where labels and relations are kept.
        labels: labels read, of as many axes as the weight, and its length on each that the weight does not share.
        used: which weights are not 0, of the weight's shape.

    """
    dims = [axis for axis, n in enumerate(used.shape) if n == 1]
    (labels,) = narrowed(labels, dims=dims)
    if labels.shape != used.shape:
        (labels,) = narrowed(channels.canonical(labels), dims=dims)
    if labels.shape == used.shape:
        written = channels.fresh(used.shape)
        return ((labels, written),), written
    entry = torch.arange(used.numel()).reshape(used.shape).expand(labels.shape)
    pairs, place = torch.unique(entry * channels.count + labels, return_inverse=True)
    entry, read = pairs // channels.count, pairs % channels.count
    written = torch.where(read > NOTHING, channels.fresh(pairs.shape), NOTHING)
    on = used.reshape(-1)[entry] & (read > NOTHING)
    channels.uses(entry[on], written[on], read[on])
    turn = torch.arange(len(entry)) - torch.searchsorted(entry, entry)
    sides = []
    for k in range(int(turn.max()) + 1):
        side = torch.zeros(2, used.numel(), dtype=torch.long)
        side[:, entry[turn == k]] = torch.stack([read, written])[:, turn == k]
        sides.append((side[0].reshape(used.shape), side[1].reshape(used.shape)))
    return tuple(sides), written[place]
