"""Design a stack of convolutions, and see where its capacity goes before a weight is drawn."""

from capalloc.app.design import ACTIVATIONS, RESIDUALS, Design, Reading, build, code, nearest, read, search, serve

__all__ = ["ACTIVATIONS", "RESIDUALS", "Design", "Reading", "build", "code", "nearest", "read", "search", "serve"]
