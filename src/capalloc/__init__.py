"""Capacity allocation: how many effective parameters a network devotes to every input, region and layer (Donier, 2019).

The public names stand in
`__init__.pyi`, in groups; each is loaded when it is first used.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("capalloc")
