"""Capacity allocation: how many effective parameters a network devotes to every input, region and layer (Donier, 2019).

The public names stand in
`__init__.pyi`, in groups; each is loaded when it is first used.
"""

import pkgutil
from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
#: The rooms are attributes too, each with an `__all__` of its own.
__all__ = [name for name in _names if name not in {module.name for module in pkgutil.iter_modules(__path__)}]
__version__ = version("capalloc")
