"""Models of transformers from a configuration: initial weights, no download."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from capalloc._runtime.extras import load_extra
from capalloc.app.cli.named_model import InputShape, NamedModel

#: Side of images where a configuration names none, and tokens of a sequence.
IMAGE_SIDE, TOKEN_COUNT = 224, 16


class FedByName(nn.Module):
    """A model given its input by name; token ids by another."""

    def __init__(self, model: nn.Module, argument: str, ids: str | None = None) -> None:
        super().__init__()
        self.model, self.argument, self.ids = model, argument, ids

    def forward(self, x: Tensor) -> Any:
        """Return what the model returns."""
        return self.model(**{self.argument if x.dtype.is_floating_point or self.ids is None else self.ids: x})


def from_config(config_class: Any, arguments: dict[str, Any], shape: InputShape) -> NamedModel:
    """Make the model of a configuration, of the class that its `architectures` names, else image classifier or base.

    Args:
        config_class: such as `transformers.ViTConfig`.
        arguments: of the configuration.
        shape: of one input; image models are made to fit.

    Raises:
        ValueError: a configuration that transformers refuses.

    """
    try:
        config = config_class(**_fitted(config_class, arguments, shape))
        model = _model(config)
    except Exception as error:  # every model has checks of its own, of any type
        raise ValueError(f"transformers refuses this {config_class.__name__}: {error}") from error
    if model.main_input_name == "input_ids":
        embedding = model.get_input_embeddings()
        length = min(TOKEN_COUNT, getattr(config, "max_position_embeddings", TOKEN_COUNT))
        fed = FedByName(model, "inputs_embeds", ids="input_ids")
        return NamedModel(fed, (length, embedding.embedding_dim), embedding.num_embeddings)
    return NamedModel(_fed(model), shape or _image_shape(config))


def _fitted(config_class: Any, arguments: dict[str, Any], shape: InputShape) -> dict[str, Any]:
    """Image size and channels from the shape, where they were not given."""
    known = inspect.signature(config_class).parameters
    told: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if shape is not None and len(shape) == 3 and shape[1] == shape[2]:
        told |= {"image_size": shape[1]} if "image_size" in known else {}
        told |= {"num_channels": shape[0]} if "num_channels" in known else {}
    return told | arguments


def _model(config: Any) -> Any:
    transformers = load_extra(type(config).__name__, "transformers")
    if config.architectures:
        chosen: Any = getattr(transformers, config.architectures[0])
        return chosen(config)
    try:
        return transformers.AutoModelForImageClassification.from_config(config)
    except ValueError:  # no model of images
        return transformers.AutoModel.from_config(config)


def _fed(model: Any) -> nn.Module:
    first = next(iter(inspect.signature(model.forward).parameters))
    own: nn.Module = model
    return own if first == model.main_input_name else FedByName(own, model.main_input_name)


def _image_shape(config: Any) -> InputShape:
    if not hasattr(config, "num_channels"):
        return None
    size = getattr(config, "image_size", None) or IMAGE_SIDE
    rows, columns = (size, size) if isinstance(size, int) else size
    return (config.num_channels, rows, columns)
