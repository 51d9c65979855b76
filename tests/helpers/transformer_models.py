"""Attention networks as people build them: small ones of transformers, from configurations, without downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, nn

from zoo import seeded_module


class Images(nn.Module):
    """A vision model of its pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


class Embeddings(nn.Module):
    """A language model of its embedded tokens; its output is the last position's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x).last_hidden_state[:, -1]


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
WORDS = {"vocab_size": 11, "max_position_embeddings": 5}


def vit(attention: str) -> nn.Module:
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3, attn_implementation=attention)
    return Images(transformers.ViTForImageClassification(config))


def swin(attention: str) -> nn.Module:
    windows = {"embed_dim": 4, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4}
    config = transformers.SwinConfig(
        **windows, image_size=16, patch_size=2, num_labels=3, attn_implementation=attention
    )
    return Images(transformers.SwinForImageClassification(config))


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(**SMALL, **WORDS, attn_implementation=attention)
    return Embeddings(transformers.BertModel(config, add_pooling_layer=False))


def gpt2(attention: str) -> nn.Module:
    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 5}
    config = transformers.GPT2Config(
        **sizes, bos_token_id=0, eos_token_id=0, use_cache=False, attn_implementation=attention
    )
    return Embeddings(transformers.GPT2Model(config))


def llama(attention: str) -> nn.Module:
    """RMS normalisation spelled out, rotary positions, grouped queries, a gated feed-forward layer."""
    config = transformers.LlamaConfig(
        **SMALL, **WORDS, num_key_value_heads=1, use_cache=False, attn_implementation=attention
    )
    return Embeddings(transformers.LlamaModel(config))


def convnext(_: str) -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, image_size=16, num_labels=3)
    return Images(transformers.ConvNextForImageClassification(config))


def resnet(_: str) -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return Images(transformers.ResNetForImageClassification(config))


def bottleneck(_: str) -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    return Images(transformers.ResNetForImageClassification(config))


@dataclass(frozen=True)
class Case:
    build: Callable[[str], nn.Module]
    shape: tuple[int, ...]
    steering: str = "$^"  # pattern of the names of parameters that only steer gates
    idle: str = "$^"  # of parameters that the outputs do not depend on


#: By their names in the first transformers 5 and in later ones.
QUERIES_AND_KEYS = r"\.(q_proj|k_proj|query|key)\."
CASES = {
    "vit": Case(vit, (3, 8, 8), QUERIES_AND_KEYS),
    "swin": Case(swin, (3, 16, 16), rf"{QUERIES_AND_KEYS}|relative_position_bias_table"),
    "bert": Case(bert, (5, 8), r"\.(query|key)\.", "word_embeddings"),
    "gpt2": Case(gpt2, (5, 8), r"c_attn", "wte"),
    "llama": Case(llama, (5, 8), r"\.(q|k|gate)_proj\.", "embed_tokens"),
    "convnext": Case(convnext, (3, 16, 16)),
    "resnet": Case(resnet, (3, 16, 16)),
    "bottleneck": Case(bottleneck, (3, 16, 16)),
}


ATTENTION = ("vit", "swin", "bert", "gpt2", "llama")


def built(name: str, attention: str) -> nn.Module:
    try:
        model = seeded_module(CASES[name].build, attention)
    except ValueError as error:  # of the first transformers 5
        if "does not support an attention implementation" not in str(error):
            raise
        pytest.skip(str(error))
    with torch.no_grad():  # biases and gains of their own, which initialisation sets to 0 and 1
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model
