"""The rules of the house, which docs/how-it-works.md explains: names, sizes, imports and words of src."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import capalloc

SRC = Path(capalloc.__file__).parent
#: Packages whose contents are promised to users; every other one begins with an underscore.
PUBLIC = {"app", "architectures", "depth_limit", "linear", "results"}
#: Words that no docstring begins with: it says what the thing does or is.
OPENINGS = (
    "after also and as at because before behind below beside between but by for from given how if in inside into "
    "itself like nor of on or outside over per so than that through to under until upon what whatever when whenever "
    "where wherever whether which who whose why with within without"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[str, ast.Module]:
    """Every file of src, by its path below the package."""
    return {str(path.relative_to(SRC)): ast.parse(path.read_text("utf-8")) for path in sorted(SRC.rglob("*.py"))}


def functions() -> Iterator[tuple[str, Function]]:
    for path, tree in trees().items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, Function))


def public_functions() -> Iterator[tuple[str, object]]:
    """What a user can call: public names, those of public modules and packages, and the methods of their classes."""
    rooms = (getattr(capalloc, name) for name in dir(capalloc))
    modules = [capalloc, *filter(inspect.ismodule, rooms)]
    for module in modules:
        for name in module.__all__:
            value, path = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.isclass(value):
                own = {key: part for key, part in vars(value).items() if inspect.isfunction(part)}
                if dataclasses.is_dataclass(value):
                    own.pop("__init__", None)  # made of its fields
                yield from ((f"{path}.{key}", part) for key, part in own.items())
            elif callable(value):
                yield path, value


def names_that_mean_two_things() -> list[str]:
    """Classes, modules and constants; `__init__` and the underscore that marks a name as private aside."""
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        module = Path(path)
        if module.stem not in ("__init__", "__main__"):
            places[module.stem].append(path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(path)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                for name in filter(re.compile(r"_*[A-Z][A-Z0-9_]+").fullmatch, names):
                    places[name].append(path)
    return [f"{name}: {', '.join(found)}" for name, found in sorted(places.items()) if len(set(found)) > 1]


def imports_inside_functions() -> list[str]:
    return [
        f"{path}:{inner.lineno} in {node.name}"
        for path, node in functions()
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]


def files_over_400_lines() -> list[str]:
    return [f"{path}: {lines}" for path, lines in lengths().items() if lines > 400]


def lengths() -> dict[str, int]:
    return {path: len((SRC / path).read_text("utf-8").splitlines()) for path in trees()}


def functions_over_60_lines() -> list[str]:
    """Lines of a function without its docstring."""
    found = []
    for path, node in functions():
        text = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        documented = node.body[0].end_lineno - node.body[0].lineno + 1 if text else 0
        if (lines := node.end_lineno - node.lineno + 1 - documented) > 60:
            found.append(f"{path}:{node.lineno} {node.name}: {lines}")
    return found


def docstrings_that_open_with_no_verb_or_thing() -> list[str]:
    found = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
                first = re.match(r"[\W_]*([\w']*)", text)[1]
                if first.lower() in OPENINGS.split():
                    found.append(f"{path}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}")
    return found


def too_many_public_names() -> list[str]:
    return capalloc.__all__[30:]


def public_functions_of_more_than_12_arguments() -> list[str]:
    counts = {path: len(inspect.signature(value).parameters) for path, value in public_functions()}
    return [f"{path}: {count}" for path, count in counts.items() if count > 12]


def private_packages_without_underscore() -> list[str]:
    packages = [path.parent.name for path in SRC.glob("*/__init__.py")]
    return sorted(name for name in packages if not name.startswith("_") and name not in PUBLIC)


def public_functions_that_hide_a_module() -> list[str]:
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in trees()}
    return [path for path, _ in public_functions() if path.removeprefix("capalloc.") in modules]


RULES = [
    names_that_mean_two_things,
    docstrings_that_open_with_no_verb_or_thing,
    public_functions_of_more_than_12_arguments,
    imports_inside_functions,
    files_over_400_lines,
    functions_over_60_lines,
    too_many_public_names,
    private_packages_without_underscore,
    public_functions_that_hide_a_module,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_has_no(rule):
    assert rule() == []


def test_the_median_file_is_short(capsys):
    found = lengths().values()
    with capsys.disabled():
        print(f"\nsrc: {len(found)} files, {sum(found)} lines, {statistics.median(found):.0f} in the median")
    assert statistics.median(found) <= 150


def test_files_of_tests_have_names_of_their_own():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)  # pytest imports them by name
