"""Propagation through the models people use, at the sizes of their configurations: time beside one training pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

import capalloc
from benchmarks.propagate import exported, image, seconds
from benchmarks.table import Table

TOKENS = 128


class Embedded(nn.Module):
    """A language model from its embedded tokens on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model(inputs_embeds=embedded).last_hidden_state[:, -1]


class Pooled(nn.Module):
    """A vision transformer's first token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state[:, 0]


class Logits(nn.Module):
    """A classifier's scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits


def resnet18() -> transformers.ResNetConfig:
    return transformers.ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: Logits(transformers.ResNetForImageClassification(resnet18())),
    "ResNet-50": lambda: Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig())),
    "ConvNeXt-T": lambda: Logits(transformers.ConvNextForImageClassification(transformers.ConvNextConfig())),
    "ViT-B/16": lambda: Pooled(transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)),
    "Swin-T": lambda: Logits(transformers.SwinForImageClassification(transformers.SwinConfig())),
    "BERT-base": lambda: Embedded(transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)),
    "GPT-2": lambda: Embedded(transformers.GPT2Model(transformers.GPT2Config())),
}


def run() -> Table:
    return Table(
        "Models at full size",
        f"transformers' models from their configurations, one image of 224 x 224 or {TOKENS} embedded tokens, medians "
        "of 5. `propagate` on the exported program; `pass` is forward and backward through all parameters.",
        ("model", "parameters", "pass", "propagate", "ratio", "symmetries", "not seen by paths"),
        [row(name) for name in MODELS],
    )


def row(name: str) -> tuple[str, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    embedded = torch.randn(1, TOKENS, 768, generator=torch.Generator().manual_seed(0))
    x = embedded if isinstance(model, Embedded) else image(224)

    def one_pass() -> None:
        model.zero_grad()
        model(x).sum().backward()

    program = exported(model, x)
    passed, walked = seconds(one_pass), seconds(lambda: capalloc.propagate(program, x, solver="markov"))
    found = capalloc.propagate(program, x, solver="markov").attrs
    exact = "" if found["symmetries_exact"] else " or more"
    return (
        name,
        f"{found['num_params'] / 1e6:.1f} M",
        f"{passed:.2f} s",
        f"{walked:.2f} s",
        f"{walked / passed:.1f}",
        f"{found['symmetries']}{exact}",
        f"{found['unseen_share']:.0%}",
    )
