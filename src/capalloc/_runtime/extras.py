"""Optional packages, loaded when the one thing that needs them is asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

#: Name of the package and what to install for it, by the module that is missing.
EXTRAS = {
    "PIL": ("Pillow", "capalloc[images]"),
    "dash": ("dash", "capalloc[design]"),
    "flask": ("dash", "capalloc[design]"),
    "lightning": ("lightning", "capalloc[lightning]"),
    "pytorch_lightning": ("lightning", "capalloc[lightning]"),
    "sklearn": ("scikit-learn", "capalloc[demo]"),
    "statsmodels": ("statsmodels", "capalloc[study]"),
    "tensorboard": ("tensorboard", "capalloc[tensorboard]"),
    "transformers": ("transformers", "capalloc[transformers]"),
    "werkzeug": ("dash", "capalloc[design]"),
}


def load_late(module: str) -> ModuleType:
    """Import a module that is slow to import, when it is first needed.

    A lazy proxy will not do for modules of torch: `inspect.getmodule` touches all that are known, and so would import
    it in the middle of another import of torch.
    """
    return importlib.import_module(module)


def load_extra(what: str, *modules: str) -> ModuleType:
    """Import the first of some modules that is there, or name the extra that brings the last one.

    Args:
        what: the thing that needs it, the subject of the message.
        modules: each does; one of capalloc may stand for those that it imports.

    Raises:
        ModuleNotFoundError: a package of an extra is missing, with what to install; or another one, as it came.

    """
    for module in modules[:-1]:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            pass
    try:
        return importlib.import_module(modules[-1])
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        package, extra = EXTRAS[missing]
        message = f"{what} needs the package {package}: pip install '{extra}'"
        raise ModuleNotFoundError(message, name=missing) from error
