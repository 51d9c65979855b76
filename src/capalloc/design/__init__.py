"""Design a stack of convolutions, and see where its capacity goes before a weight is drawn."""

from capalloc.design.model import ACTIVATIONS, RESIDUALS, Design
from capalloc.design.network import build
from capalloc.design.reading import Reading, read
from capalloc.design.serve import serve
from capalloc.design.source import code

__all__ = ["ACTIVATIONS", "RESIDUALS", "Design", "Reading", "build", "code", "read", "serve"]
