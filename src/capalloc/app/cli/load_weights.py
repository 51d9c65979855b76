"""Weights from a file into a model, without executing anything that the file may hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from capalloc.app.cli.named_model import TorchModel
from capalloc.results.view import named

WEIGHT_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
#: Where checkpoints of trainers keep the weights, and what wrappers put before every name.
KEYS, PREFIXES = ("state_dict", "model_state_dict", "model"), ("module.", "_orig_mod.", "model.")


def load_weights(model: TorchModel, path: Path) -> None:
    """Give a model the parameters and buffers of a file: safetensors, or what `torch.save` wrote of plain tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, weights of another model, or what would have to be unpickled.

    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    state = _read(path)
    if not isinstance(model, nn.Module):
        raise ValueError("--weights is for a torch.nn.Module; an exported program has its own")
    own = model.state_dict()
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    wrong = [
        f"{name} is {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [
        f"{name} is {state[name].dtype} for {value.dtype}"
        for name, value in own.items()
        if name in state and value.is_floating_point() and not state[name].is_floating_point()
    ]  # a cast would leave out imaginary parts, and round weights to whole numbers
    for what, names in (("lacks", own.keys() - state), ("has besides", state.keys() - own), ("does not fit:", wrong)):
        if names:
            raise ValueError(f"--weights {path} is of another model: it {what} {named(sorted(names))}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # of tensors without values, or sparse ones
        raise ValueError(f"--weights {path} does not fit: {str(error).splitlines()[-1].strip()}") from error


def _check_parts(path: Path) -> None:
    """Refuse an archive that was changed since it was written: torch reads it without its checksums."""
    with zipfile.ZipFile(path) as archive:
        if (changed := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {changed} differs")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(path):
            _check_parts(path)
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"--weights {path} holds more than tensors, which would have to be executed: save model.state_dict()"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--weights {path} is damaged, or no file of weights: {first}") from error
    for key in KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"--weights {path} holds no state_dict: save model.state_dict()")
    return {str(name): value for name, value in found.items()}
