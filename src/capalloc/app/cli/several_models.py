"""Several models on one line, each with arguments of its own."""

from __future__ import annotations

from collections.abc import Sequence

from capalloc.app.cli.errors import UsageError


def arguments_of_each(models: Sequence[str], given: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Models and their `name=value`, by the name that a table shows: with the arguments, where one stands twice.

    Args:
        models: as the command line names them.
        given: `name=value` of all models; with `model:` or the model's place in the line, from 1, before it, of one.

    Raises:
        UsageError: an argument of another form or of no model, or models that are alike.

    """
    own: list[dict[str, str]] = [{} for _ in models]
    for text in sorted(given, key=lambda text: ":" in text.partition("=")[0]):  # what is said of one counts
        target, equals, value = text.partition("=")
        model, colon, name = target.rpartition(":")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg must be name=value or model:name=value, got {text!r}")
        places = [k for k, source in enumerate(models) if not colon or model in (source, str(k + 1))]
        if not places:
            raise UsageError(f"--arg {text} is of no model in the line: {', '.join(models)}")
        for k in places:
            own[k][name] = value
    found: dict[str, tuple[str, list[str]]] = {}
    for source, named in zip(models, own, strict=True):
        told = [f"{name}={value}" for name, value in named.items()]
        label = " ".join([source, *told]) if models.count(source) > 1 else source
        if label in found:
            raise UsageError(f"{label} stands twice; give each its own --arg, such as 2:depth=8 for the second")
        found[label] = source, told
    return found
