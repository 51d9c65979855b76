"""A model that ends at one of its layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from capalloc.results.view import named

#: Layers that an error names.
LAYERS_NAMED = 12


class LayerOutput(nn.Module):
    """A model whose output is that of a layer, as it is called last.

    Raises:
        TypeError: what is given is no module, so that its layers are not known.
        ValueError: it has no layer of that name.

    """

    def __init__(self, model: Any, layer: str) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"layer needs the model as a torch.nn.Module, got {type(model).__name__}")
        names = [name for name, _ in model.named_modules() if name]
        if layer not in names:
            raise ValueError(f"the model has no layer {layer!r}; it has {named(names, LAYERS_NAMED) or 'none'}")
        self._orig_mod = model  # named as in the wrapper of torch.compile: its arguments are those of the model inside
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the whole model, and return what the layer does."""
        returned: list[Any] = []
        handle = self._orig_mod.get_submodule(self.layer).register_forward_hook(
            lambda module, given, found: returned.append(found)
        )
        try:
            self._orig_mod(*args, **kwargs)
        finally:
            handle.remove()
        if not returned:
            raise ValueError(f"the model does not call its layer {self.layer!r}")
        return returned[-1]
