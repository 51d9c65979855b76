"""Design a stack of convolutions, and see where its capacity goes before a weight is drawn."""

from capalloc.app.design.find_designs import search
from capalloc.app.design.nearest_design import nearest
from capalloc.app.design.reading import Reading, read
from capalloc.app.design.server import serve
from capalloc.app.design.stack import ACTIVATIONS, RESIDUALS, Design
from capalloc.app.design.torch_code import code
from capalloc.app.design.torch_network import build

__all__ = ["ACTIVATIONS", "RESIDUALS", "Design", "Reading", "build", "code", "nearest", "read", "search", "serve"]
