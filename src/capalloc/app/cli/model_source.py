"""The model that a command line names: by an architecture's name, a .pt2 file, a factory, a configuration."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from capalloc import architectures
from capalloc._model.archive import load_program
from capalloc._model.exported import input_shape
from capalloc._model.problem import seeded
from capalloc._runtime.extras import load_extra
from capalloc.app.cli.errors import UsageError
from capalloc.app.cli.load_weights import WEIGHT_ENDINGS, load_weights
from capalloc.app.cli.named_model import InputShape, NamedModel
from capalloc.app.cli.told import told
from capalloc.app.cli.transformers_source import from_config

#: Names of a module that a message lists.
NAMES_TOLD = 8


def read_model(
    source: str,
    arguments: Sequence[str] = (),
    seed: int = 0,
    shape: InputShape = None,
    weights: Path | None = None,
) -> NamedModel:
    """Make or load the model that `source` names, with its random weights drawn from `seed`.

    Args:
        source: a reference architecture, a .pt2 file, `package.module:factory`, `path/to/file.py:factory`, or a
            configuration of transformers.
        arguments: `name=value`, of the factory or configuration; values are Python literals, or else words.
        seed: of the weights; the global random state is left alone.
        shape: that of one input, where one was asked for: architectures and configurations are made to fit.
        weights: a file of parameters and buffers that the model takes (`load_weights`).

    Raises:
        ValueError, TypeError: a source or an argument of another form, or a factory that makes something else.
        FileNotFoundError, ModuleNotFoundError: there is no such file or module.

    """
    if source.endswith(".pt2"):
        if arguments or weights is not None:
            raise UsageError(
                "--arg and --weights are for a factory; a .pt2 file has its weights and takes no arguments"
            )
        return _program(source)
    if Path(source).suffix in WEIGHT_ENDINGS:
        raise ValueError(
            f"{source} is no code that makes a model, and nothing in it is run: name what makes the model "
            f"(file.py:factory), and give its weights, a state_dict, as --weights {source}"
        )
    made = _named(source, arguments, seed, shape)
    if weights is not None:
        load_weights(made.model, weights)
    return made


def _named(source: str, arguments: Sequence[str], seed: int, shape: InputShape) -> NamedModel:
    named = dict(_argument(text) for text in arguments)
    if source in architectures.names():
        usual = architectures.info(source)
        if shape is not None:
            named["shape"] = (*shape, *usual.shape[1:]) if reads_tokens(source) and len(shape) == 1 else shape
        model = architectures.make(source, seed, **named)
        table = architectures.token_table(model)
        return NamedModel(model, named.get("shape", usual.shape), None if table is None else len(table))
    module, colon, name = source.rpartition(":") if ":" in source else (source, "", "")
    if not colon and source.endswith("Config"):
        module, name = "transformers", source
    if not module or not name:
        raise UsageError(_unknown(source))
    with seeded(seed, torch.device("cpu")):  # importing the module may draw weights already
        factory = find(module, name)
    return _made(source, factory, named, seed, shape)


def reads_tokens(source: str) -> bool:
    """Tell whether a source is a reference architecture that takes token ids, and is made to fit their number."""
    return source in architectures.names() and architectures.info(source).reads_tokens


def _made(source: str, factory: Any, named: dict[str, Any], seed: int, shape: InputShape) -> NamedModel:
    if isinstance(factory, nn.Module) and not named:
        return NamedModel(factory)
    if not callable(factory):
        raise TypeError(f"{source} is a {type(factory).__name__}; name a function or class that makes the model")
    with seeded(seed, torch.device("cpu")):
        if _is_config(factory):
            return from_config(factory, named, shape)
        with told(source, "its call; arguments are given as --arg name=value"):
            model = factory(**named)
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(f"{source} returned {type(model).__name__}; it must return a torch.nn.Module")
    return NamedModel(model)


def _is_config(factory: Any) -> bool:
    """Tell a configuration class of transformers without importing transformers."""
    return isinstance(factory, type) and any(
        base.__module__.startswith("transformers.") and base.__name__.startswith("PreTrainedConfig")
        for base in factory.__mro__
    )


def _program(path: str) -> NamedModel:
    program = load_program(path)
    sizes = input_shape(program)[1:]
    return NamedModel(program, tuple(n for n in sizes if n is not None) if None not in sizes else None)


def _unknown(source: str) -> str:
    if source.endswith(".py"):
        return f"{source} is a file of code: name what makes the model in it, {source}:NAME"
    near = difflib.get_close_matches(source, architectures.names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `capalloc models` lists the architectures"
    return (
        "MODEL must be the name of an architecture, a .pt2 file, package.module:factory, file.py:factory or a "
        f"configuration of transformers, got {source!r}{hint}"
    )


def find(module_name: str, name: str) -> Any:
    """Import what a module, or a file of Python, calls `name`; modules of its folder are found first."""
    file = Path(module_name) if module_name.endswith(".py") else None
    here = str(Path.cwd() if file is None else file.resolve().parent)  # as `python -m` and `python file.py` do
    sys.path.insert(0, here)
    try:
        if module_name == "transformers":
            found: Any = load_extra(name, module_name)
        else:
            found = _imported(module_name) if file is None else _executed(file)
    finally:
        sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name} has no {name}{_own_names(found)}")
        found = getattr(found, part)
    return found


def _own_names(module: Any) -> str:
    """Names that a module defines itself and that can be called, for a message."""
    name = getattr(module, "__name__", None)
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name and callable(value)]
    return f"; it has {', '.join(own[:NAMES_TOLD])}{', ...' * (len(own) > NAMES_TOLD)}" if own else ""


def _imported(name: str) -> Any:
    with told(f"module {name}"):
        return importlib.import_module(name)


def _executed(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    package = types.ModuleType(f"_folder_of_{file.stem}")
    package.__path__ = [str(file.resolve().parent)]
    sys.modules[package.__name__] = package  # `from .layers import Block` works
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickles look for it there
    with told(str(file)):
        spec.loader.exec_module(module)
    return module


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--arg must be name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word
