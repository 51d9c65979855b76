"""The reference architectures: each is built, propagated, measured; the registry's rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import capalloc
from capalloc import architectures
from capalloc.architectures import catalogue
from capalloc.architectures.layers import chain

#: Arguments that make each small enough to be measured.
SMALL = {
    "bert-tiny": {"shape": (4, 8), "depth": 1},
    "convnext-tiny": {"shape": (1, 4, 4), "width": 2, "depths": (1, 1), "patch": 2, "num_classes": 3, "scale": 0.5},
    "densenet121": {"shape": (1, 16, 16), "growth": 2, "depths": (1, 1), "bottleneck": 2, "num_classes": 3},
    "gpt-tiny": {"shape": (4, 8), "depth": 1, "heads": 2, "vocabulary": 4},
    "gru": {"shape": (4, 2), "width": 3, "num_classes": 3},
    "lenet": {"shape": (1, 12, 12), "width": 2, "hidden": (4,), "num_classes": 3},
    "lstm": {"shape": (4, 2), "width": 3, "depth": 2, "num_classes": 3},
    "mixer": {"shape": (1, 8, 8), "width": 4, "depth": 1, "hidden": (3, 5), "patch": 4, "num_classes": 3},
    "mlp": {"shape": (1, 3, 3), "width": 5, "num_classes": 3},
    "mobilenet-v2": {
        "shape": (1, 8, 8),
        "width": 0.1,
        "stages": ((1, 16, 1, 1), (2, 16, 2, 2)),
        "last": 4,
        "num_classes": 3,
    },
    "preact-resnet": {"shape": (1, 8, 8), "width": 2, "depths": (1, 1), "num_classes": 3},
    "resnet18": {"shape": (1, 8, 8), "width": 2, "depths": (1, 1), "num_classes": 3},
    "resnet50": {"shape": (1, 8, 8), "width": 2, "depths": (1, 1), "num_classes": 3},
    "tcn": {"shape": (1, 12), "width": 2, "depth": 2, "kernel": 3, "num_classes": 3},
    "unet": {"shape": (1, 8, 8), "width": 2, "depth": 1},
    "vgg11": {"shape": (1, 8, 8), "width": 2, "convolutions": (1, 1), "hidden": 4, "num_classes": 3},
    "vit-tiny": {"shape": (1, 8, 8), "width": 4, "depth": 1, "heads": 2, "patch": 4, "num_classes": 3},
    "wavenet": {"shape": (1, 12), "width": 2, "layers": 2, "stacks": 1, "num_classes": 3},
}
#: Parameters of the same networks as torchvision and timm count them.
PUBLISHED = {
    "convnext-tiny": 28_589_128,
    "densenet121": 7_978_856,
    "mixer": 18_528_264,
    "mobilenet-v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg11": 132_863_336,
    "vit-tiny": 5_717_416,
}


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    model = architectures.make(name, **SMALL[name])
    x = torch.randn(8, *SMALL[name]["shape"], generator=torch.Generator().manual_seed(0))
    return model.double(), x.double()


def test_all_are_tested():
    assert architectures.names() == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_propagates(name):
    model, x = small(name)
    allocation = capalloc.propagate(model, x, table=False, solver="markov")
    held = sum(allocation.attrs[key] for key in ("unseen_params", "unused_params", "symmetries"))
    assert 0 < allocation.total <= allocation.attrs["num_params"]
    assert allocation.total >= allocation.attrs["num_params"] - held - 1e-6


@pytest.mark.parametrize("name", ["wavenet", "vit-tiny", "unet"])
def test_has_a_receptive_field(name):
    model, x = small(name)
    field = capalloc.receptive_field(model, x[:1])
    assert all(1 <= extent.size <= n for extent, n in zip(field.axes.values(), x.shape[1:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_works_at_full_size(name):
    model, shape = architectures.make(name), architectures.info(name).shape
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert capalloc.propagate(model, x, solver="markov").total > 0
    assert capalloc.receptive_field(model, x[:1]).area_68 > 0


@pytest.mark.parametrize("name", ["mlp", "tcn"])
def test_measures(name):
    model, x = small(name)
    allocation = capalloc.measure(
        model, x.repeat(4, *[1] * (x.ndim - 1)) + torch.linspace(0, 1, 32).reshape(-1, *[1] * (x.ndim - 1))
    )
    assert 0 < allocation.total <= allocation.attrs["num_params"]


@pytest.mark.parametrize("name", SMALL)
def test_default_sizes_are_those_of_the_papers(name):
    info = architectures.info(name)
    assert info.description.endswith(".")
    assert len(info.description) < 100
    assert info.reference
    assert info.num_params == PUBLISHED.get(name, info.num_params)
    assert math.prod(info.shape) > 0
    assert set(SMALL[name]) <= set(info.arguments)


def test_the_seed_makes_the_weights_and_nothing_else_is_touched():
    state = torch.random.get_rng_state()
    first, again, other = (architectures.make("resnet18", seed, **SMALL["resnet18"]) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not first.training
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.stem.conv.weight, other.stem.conv.weight)


def test_batch_norm_has_the_statistics_of_gaussian_inputs():
    """Normalised inputs of each norm: the stream of a residual network grows no faster than its depth."""
    model = architectures.make("preact-resnet", depths=(6,), width=8, shape=(3, 16, 16))
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    seen = []
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_hook(lambda module, inputs, output: seen.append(float(output.detach().var())))
        assert norm.momentum == 0.1
    model(x)
    assert seen == pytest.approx([1] * len(seen), abs=0.3)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "match"),
    [
        ("resnet19", {}, ValueError, "no architecture 'resnet19'; did you mean 'resnet18'"),
        ("mlp", {"heads": 2}, TypeError, "mlp takes no argument 'heads'; it takes width, depth, num_classes, shape"),
        (
            "mlp",
            {"shape": (3, 4)},
            ValueError,
            r"shape must be 3 positive integers such as \(1, 28, 28\), got \(3, 4\)",
        ),
        ("mlp", {"shape": (3, 4, 0)}, ValueError, "shape must be 3 positive integers"),
        ("mlp", {"width": -1}, ValueError, "width must be a positive integer such as 256, got -1"),
        ("mlp", {"width": "wide"}, ValueError, "width must be a positive integer such as 256, got 'wide'"),
        ("lenet", {"shape": (1, 8, 8)}, ValueError, "rows and columns >= 12"),
        ("vgg11", {"shape": (3, 16, 16)}, ValueError, "rows and columns >= 32"),
        ("unet", {"shape": (1, 20, 16)}, ValueError, r"multiples of 2\*\*depth = 16, got shape \(1, 20, 16\)"),
        ("vit-tiny", {"shape": (3, 20, 20)}, ValueError, "multiples of patch = 16"),
        ("gpt-tiny", {"heads": 3}, ValueError, "width must be a multiple of heads = 3, got 128"),
        ("densenet121", {"shape": (3, 8, 8)}, ValueError, "densenet121 cannot be built with"),
    ],
)
def test_refusals(name, arguments, error, match):
    with pytest.raises(error, match=match):
        architectures.make(name, **arguments)


def test_registering(monkeypatch):
    monkeypatch.setattr(catalogue, "_REGISTRY", dict(catalogue._REGISTRY))
    with pytest.raises(ValueError, match="there is an architecture 'mlp' already"):
        architectures.register("mlp", "Again.", "none")(lambda shape=(1,): nn.Linear(*shape, 1))
    with pytest.raises(ValueError, match="must give every argument a default, and one must be shape"):
        architectures.register("mine", "Mine.", "none")(lambda width: nn.Linear(width, 1))
    with pytest.raises(ValueError, match="one must be shape"):
        architectures.register("mine", "Mine.", "none")(lambda width=2: nn.Linear(width, 1))

    @architectures.register("mine", "Mine.", "none")
    def mine(width: int = 2, shape: tuple[int, ...] = (3,)) -> nn.Module:
        return nn.Linear(shape[0], width)

    assert "mine" in architectures.names()
    assert architectures.info("mine").num_params == 8
    assert architectures.make("mine", width=5)(torch.zeros(1, 3)).shape == (1, 5)


def test_layers_of_a_chain_are_numbered_by_kind():
    layers = chain(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 1))
    assert [name for name, _ in layers.named_children()] == ["conv1", "relu1", "conv2", "relu2", "flatten", "linear"]
