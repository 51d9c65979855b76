"""Design a stack of convolutions, and see where its capacity goes before a weight is drawn."""

from capalloc.app.design.network import build
from capalloc.app.design.reading import Reading, read
from capalloc.app.design.serving import serve
from capalloc.app.design.settings_of_design import ACTIVATIONS, RESIDUALS, Design
from capalloc.app.design.source import code

__all__ = ["ACTIVATIONS", "RESIDUALS", "Design", "Reading", "build", "code", "read", "serve"]
