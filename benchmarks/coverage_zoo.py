"""Architectures of other people by package: names, sizes, how each builds one. Nothing is loaded before its turn."""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 3


@dataclass(frozen=True)
class Architecture:
    """A network and the shape of one of its inputs."""

    family: str
    name: str
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]]

    def build(self, examples: int) -> tuple[nn.Module, Tensor]:
        model, shape = self.make()
        return model.eval(), torch.randn(examples, *shape, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """A model called in its own way, and the tensor of constraints in what it returns."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return first_tensor(self.call(self.model, x))


def first_tensor(returned: Any) -> Tensor:
    """The logits, the last hidden state, or the first tensor, of what a model returned."""
    if isinstance(returned, Tensor):
        return returned
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(returned, name, None), Tensor):
            return found
    values = returned.values() if hasattr(returned, "values") else returned
    return next(first_tensor(value) for value in values if value is not None)


@cache
def load(target: str) -> Any:
    """Find `package.module:name`."""
    _stand_in_for_compiled_parts()
    return pkgutil.resolve_name(target)


@cache
def _stand_in_for_compiled_parts() -> None:
    # Wheels of torchvision and torchaudio are linked to CUDA. Beside a torch without it what they compile gets names
    # alone, and nothing here calls it.
    parts = {name: _stand_in(f"torchaudio.{name}") for name in ("functional", "transforms")}
    vars(_stand_in("torchaudio")).update(parts)
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        names = (
            "roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward ps_roi_pool"
        )
        for name in f"{names} _ps_roi_pool_backward nms qnms qroi_align deform_conv2d _deform_conv2d_backward".split():
            library.define(f"{name}(Tensor x) -> Tensor")
        _KEPT.append(library)


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(__spec__=importlib.machinery.ModuleSpec(name, None), __path__=[], __getattr__=_absent)
    return sys.modules.setdefault(name, module)


_KEPT: list[Any] = []


def _absent(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (nn.Module,), {}) if name[0].isupper() else (lambda *args, **options: None)


def load_packages() -> None:
    """Load what takes seconds, once for all processes that are forked then."""
    for target in (
        "timm:create_model",
        "transformers:AutoModel",
        "monai.networks.nets:UNet",
        "braindecode.models:EEGNet",
    ):
        load(target)


def accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a function has a name for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def architectures() -> list[Architecture]:
    """Every one, in the order of its family."""
    return [
        *_timm(), *_torchvision(), *_pytorchcv(), *_transformers(), *_vit_pytorch(), *_x_transformers(), *_monai(),
        *_segmentation(), *_braindecode(), *_graphs(), *_others(),
    ]  # fmt: skip


# timm: the smallest of each module; those with a fixed grid of patches are told the size.

TIMM = {
    32: "resnet10t skresnet18 resnest14d test_resnet test_byobnet mobileone_s1 test_efficientnet "
    "test_efficientnet_evos "
    "test_efficientnet_gn test_efficientnet_ln mobilenetv2_035 mobilenetv3_small_050 mixnet_s lcnet_035 ghostnet_050 "
    "hardcorenas_a mobilenetv4_conv_small_035 test_convnext test_convnext3 convnextv2_atto test_nfnet "
    "dla46x_c regnetx_002 regnety_002 rexnet_100 cspnext_tiny ese_vovnet19b_dw edgenext_xx_small efficientvit_b0 "
    "fasternet_t0 "
    "fastvit_t8 hgnetv2_b0 legacy_seresnet18 test_mambaout mobilevit_xxs mobilevitv2_050 repvit_m0_9 repghostnet_050 "
    "shvit_s1 starnet_s050 inception_next_atto swiftformer_xs efficientvim_m1 cpubone_nano",
    64: "ghostnetv2_100 hrnet_w18_small pvt_v2_b0 visformer_tiny lambda_resnet26rpt_256 eca_botnext26ts_256 "
    "tiny_vit_5m_224 csatv2",
    96: "test_vit test_vit2 test_vit3 test_vit4 deit_tiny_distilled_patch16_224 cait_xxs24_224 convit_tiny "
    "eva02_tiny_patch14_224 xcit_nano_12_p16_224 beit_base_patch16_224 vit_tiny_r_s16_p8_224 "
    "vit_relpos_small_patch16_224 "
    "samvit_base_patch16 hiera_tiny_224 naflexvit_base_patch16_gap coat_lite_tiny tnt_s_legacy_patch16_224 "
    "efficientformerv2_s0 levit_128s twins_svt_small davit_tiny",
    128: "maxvit_pico_rw_256 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224",
}  # fmt: skip
#: Fewer blocks where a network has many.
TIMM_OPTIONS: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"depth": 3, "depth_token_only": 1},
    "beit_base_patch16_224": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "samvit_base_patch16": {"embed_dim": 64, "depth": 2, "num_heads": 4, "global_attn_indexes": (1,)},
    "naflexvit_base_patch16_gap": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "vit_relpos_small_patch16_224": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "flexivit_small": {"embed_dim": 64, "depth": 2, "num_heads": 4},
    "tnt_s_legacy_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4},
    "swinv2_cr_tiny_ns_224": {"embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 4},
    "davit_tiny": {"embed_dims": (24, 48, 96, 192), "depths": (1, 1, 1, 1)},
    "twins_svt_small": {"embed_dims": (16, 32, 64, 64), "depths": (1, 1, 2, 1)},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 2, 1)},
}


#: By class, where no name is of a small one.
TIMM_CLASSES: dict[str, tuple[dict[str, Any], int]] = {
    "mlp_mixer:MlpMixer": ({"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16}, 32),
    "sequencer:Sequencer2d": ({"img_size": 32, "layers": [1, 1], "patch_sizes": [4, 2], "embed_dims": [8, 16],
                               "hidden_sizes": [4, 8], "mlp_ratios": [2, 2]}, 32),
    "convmixer:ConvMixer": ({"dim": 16, "depth": 2, "patch_size": 4, "kernel_size": 5}, 32),
    "metaformer:MetaFormer": ({"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}, 64),
    "focalnet:FocalNet": ({"embed_dim": 8, "depths": (1, 1, 1, 1)}, 64),
    "volo:VOLO": ({"layers": [1, 1, 1, 1], "img_size": 64, "embed_dims": [16, 16, 16, 16], "num_heads": [2, 2, 2,
        2]}, 64),
    "crossvit:CrossVit": ({"img_size": 48, "img_scale": (1.0, 1.0), "patch_size": (8, 12), "embed_dim": (16, 16),
                           "depth": ((1, 1, 0), (1, 1, 0)), "num_heads": (2, 2)}, 48),
    "nest:Nest": ({"img_size": 32, "patch_size": 2, "num_levels": 3, "embed_dims": (8, 16, 16), "num_heads": (1, 2, 2),
                   "depths": (1, 1, 1)}, 32),
}  # fmt: skip


def _timm() -> Iterator[Architecture]:
    for size, names in TIMM.items():
        for name in names.split():
            kind = "timm, networks of patches" if size > 64 else "timm, convolutional"
            yield Architecture(kind, f"timm {name}", partial(_make_timm, name, size))
    for name, (options, side) in TIMM_CLASSES.items():
        make = partial(
            _make_class, f"timm.models.{name}", {}, options | {"num_classes": CLASSES}, (3, side, side), False
        )
        yield Architecture("timm, networks of patches", f"timm {name}", make)


def _make_timm(name: str, size: int) -> tuple[nn.Module, tuple[int, ...]]:
    create, options = load("timm:create_model"), TIMM_OPTIONS.get(name, {})
    try:
        model = create(name, num_classes=CLASSES, img_size=size, **options)
    except TypeError:
        model = create(name, num_classes=CLASSES, **options)
    return model, (3, size, size)


TORCHVISION = "googlenet mobilenet_v2 shufflenet_v2_x0_5 squeezenet1_1"


def _torchvision() -> Iterator[Architecture]:
    for name in TORCHVISION.split():
        yield Architecture("torchvision", f"torchvision {name}", partial(_make_torchvision, name))


def _make_torchvision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    options = {"init_weights": False} if name == "googlenet" else {}
    return load("torchvision.models:get_model")(name, weights=None, num_classes=CLASSES, **options), (3, 64, 64)


PYTORCHCV = (
    "preresnet18_wd4 resnestabc14 bam_resnet18 cbam_resnet18 diaresnet10 diracnet18v2 sharesnet18 sparsenet121 "
    "channelnet "
    "bagnet9 espnetv2_wd2 dicenet_wd5 hardnet39ds sqnxt23_w1 shufflenet_g3_wd4 menet108_8x1_g3 "
    "igcv3_wd4 xdensenet40_2_k24_bc_cifar10 nin_cifar10 resnext20_16x4d_cifar10 rir_cifar10 "
    "shakeshakeresnet20_2x16d_cifar10 ror3_56_cifar10 octresnet10_ad2 revnet38 airnet50_1x64d_r16"
)


def _pytorchcv() -> Iterator[Architecture]:
    for name in PYTORCHCV.split():
        yield Architecture("pytorchcv", f"pytorchcv {name}", partial(_make_pytorchcv, name))


def _make_pytorchcv(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    side = 32 if name.endswith("cifar10") else 64
    options = {} if side == 32 else {"in_size": (side, side)}
    model = load("pytorchcv.model_provider:get_model")(name, pretrained=False, **options)
    if isinstance(getattr(getattr(model, "features", None), "final_pool", None), nn.AvgPool2d):
        model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # was of 7 x 7 places, those of the usual images
    return model, (3, side, side)


# transformers: by the type of a configuration; sizes by all names that configurations have for them.

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size",
        "word_embed_proj_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
            "decoder_attention_heads"), 2
    ),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 32),
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "d_kv": 8, "pad_token_id": 0, "use_cache": False,
    "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "num_labels": CLASSES, "rotary_dim": 4,
    "moe_intermediate_size": 8, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TEXTS = (
    "albert bert distilbert mpnet deberta deberta-v2 xlnet gpt2 gpt_neo gptj gpt_neox opt bloom llama mixtral qwen2 "
    "qwen3 "
    "gemma2 gemma3_text phi falcon stablelm olmo2 cohere mamba mamba2 rwkv mobilebert squeezebert convbert fnet "
    "nystromformer funnel roformer longformer big_bird modernbert granite recurrent_gemma biogpt codegen ctrl esm "
    "nemotron glm "
    "deepseek_v3 olmoe diffllama gpt_oss xlstm falcon_mamba lfm2 ibert gpt_bigcode"
)
TEXT_OPTIONS: dict[str, dict[str, Any]] = {
    "codegen": {"n_embd": 32, "n_head": 4, "rotary_dim": 4}, "diffllama": {"num_key_value_heads": 2},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8,
        "d_inner": 24},
    "longformer": {"attention_window": 4},
    "big_bird": {"attention_type": "original_full"},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 1},
    "mamba2": {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    "mamba": {"state_size": 4},
    "falcon_mamba": {"state_size": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "rwkv": {"attention_hidden_size": 16},
    "deepseek_v3": {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
                    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                    "num_key_value_heads": 2},
    "recurrent_gemma": {"lru_width": 16, "num_hidden_layers": 3},
    "data2vec-text": {"max_position_embeddings": 40}, "roberta": {"max_position_embeddings": 40},
    "esm": {"position_embedding_type": "rotary"},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 8},
    "xlstm": {"num_heads": 2, "chunk_size": 8, "chunkwise_kernel": "chunkwise--native_autograd",
              "sequence_kernel": "native_sequence__native", "step_kernel": "native"},
    "convbert": {"embedding_size": 16, "head_ratio": 1},
}  # fmt: skip
PATCHES = (
    "vit beit dinov2 dinov2_with_registers ijepa vit_msn vit_mae siglip_vision_model clip_vision_model dinov3_vit "
    "data2vec-vision audio-spectrogram-transformer aimv2_vision_model vitdet"
)
PICTURES: dict[str, dict[str, Any]] = {
    **{name: {"image_size": 32, "patch_size": 8} for name in PATCHES.split()},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 4},
    "swinv2": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 4},
    "convnext": {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2},
    "dinov3_convnext": {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
    "regnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "groups_width": 4},
    "bit": {"embedding_size": 32, "hidden_sizes": [128, 128], "depths": [1, 1], "num_groups": 4},
    "mobilenet_v1": {"depth_multiplier": 0.25}, "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "image_size": 64},
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": 64},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64, "hidden_dim": 320},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "deit": {"image_size": 32, "patch_size": 8, "architectures": ["DeiTForImageClassification"]},
    "levit": {"architectures": ["LevitForImageClassification"], "image_size": 64, "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8], "patch_size": 16},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
    "pvt": {"image_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1,
        2, 2]},
    "pvt_v2": {"image_size": 64, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1,
        1, 2, 2]},
    "segformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
                  "decoder_hidden_size": 16},
    "focalnet": {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 16], "focal_levels": [1, 1],
                 "focal_windows": [3, 3]},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "textnet": {}, "yolos": {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 3},
    "hiera": {"image_size": [64, 64], "depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "num_query_pool": 1,
              "masked_unit_size": [8, 8], "masked_unit_attention": [True, False]},
    "glpn": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
             "decoder_hidden_size": 8},
    "swin2sr": {"image_size": 32, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4},
}  # fmt: skip
SOUNDS = "wav2vec2 hubert wavlm unispeech sew data2vec-audio"
SERIES = ("patchtst", "patchtsmixer")


def _transformers() -> Iterator[Architecture]:
    for name in TEXTS.split():
        yield Architecture("transformers, texts", f"transformers {name}", partial(_make_text, name))
    for name, options in PICTURES.items():
        yield Architecture("transformers, pictures", f"transformers {name}", partial(_make_picture, name, options))
    for name in SOUNDS.split():
        yield Architecture("transformers, sounds and series", f"transformers {name}", partial(_make_sound, name))
    for name in SERIES:
        yield Architecture("transformers, sounds and series", f"transformers {name}", partial(_make_series, name))


def _configuration(name: str, **options: Any) -> Any:
    known = load("transformers.models.auto.configuration_auto:CONFIG_MAPPING")[name]
    return known(**accepted(known.__init__, SMALL) | options)


def _model_of(config: Any, *makers: str) -> nn.Module:
    if config.architectures:
        return load(f"transformers:{config.architectures[0]}")(config)
    try:
        return load(f"transformers:{makers[0]}").from_config(config)
    except ValueError:
        return _model_of(config, *makers[1:])


def _make_text(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    model = _model_of(_configuration(name, **TEXT_OPTIONS.get(name, {})), "AutoModel")
    width = model.get_input_embeddings().weight.shape[1]
    return Wrapped(model, lambda model, x: model(inputs_embeds=x)), (8, width)


def _make_picture(name: str, options: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    config = _configuration(name, **options)
    model = _model_of(config, "AutoModelForImageClassification", "AutoModel")
    side = getattr(config, "image_size", None)
    side = side if isinstance(side, int) and side <= 64 else 64
    shape = (1024, 128) if name.startswith("audio") else (3, side, side)
    argument = next(iter(inspect.signature(model.forward).parameters))
    return Wrapped(model, lambda model, x: model(**{argument: x})), shape


def _make_sound(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    options = {"conv_dim": (8, 8, 8), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
               "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip
    config = _configuration(name, **options)
    return Wrapped(load("transformers:AutoModel").from_config(config), lambda model, x: model(x)), (400,)


def _make_series(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    config = _configuration(name, context_length=32, patch_length=8, patch_stride=8, num_input_channels=2)
    model = load("transformers:AutoModel").from_config(config)
    return Wrapped(model, lambda model, x: model(past_values=x)), (32, 2)


# Packages whose classes take their sizes as arguments.

VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_classes": CLASSES, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24,
    "dim_head": 8,
}  # fmt: skip
#: Module and class, options that replace those of `VIT`, and side of the image.
VIT_PYTORCH: dict[str, tuple[dict[str, Any], int]] = {
    "vit:ViT": ({}, 32), "simple_vit:SimpleViT": ({}, 32), "deepvit:DeepViT": ({}, 32),
    "cait:CaiT": ({"cls_depth": 1}, 32), "parallel_vit:ViT": ({"num_parallel_branches": 2}, 32),
    "vit_for_small_dataset:ViT": ({}, 32), "vit_with_patch_merger:ViT": ({"patch_merge_layer": 1}, 32),
    "learnable_memory_vit:ViT": ({}, 32), "simple_vit_with_register_tokens:SimpleViT": ({}, 32),
    "simple_vit_with_qk_norm:SimpleViT": ({}, 32), "simple_vit_with_value_residual:SimpleViT": ({}, 32),
    "simple_vit_with_fft:SimpleViT": ({"freq_patch_size": 8}, 32), "normalized_vit:nViT": ({}, 32),
    "simple_uvit:SimpleUViT": ({}, 32), "look_vit:LookViT": ({"highres_patch_size": 4, "cross_attn_heads": 2,
        "patch_conv_kernel_size": 3}, 32), "vit_5:ViT": ({}, 32),
    "simple_vit_with_hyper_connections:SimpleViT": ({"num_residual_streams": 2}, 32), "jumbo_vit:JumboViT": ({}, 32),
    "simple_vit_with_sparse_gating:SimpleViTWithSparseGating": ({}, 32), "vit_with_keel_post_ln:ViT": ({}, 32),
    "ats_vit:ViT": ({"max_tokens_per_depth": (8, 4)}, 32), "rvt:RvT": ({}, 32), "xcit:XCiT": ({"cls_depth": 1}, 32),
    "pit:PiT": ({"depth": (1, 1)}, 32), "t2t:T2TViT": ({"t2t_layers": ((7, 4), (3, 2))}, 32),
    "cct:CCT": ({"img_size": 32, "embedding_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2,
                 "n_conv_layers": 1, "kernel_size": 3}, 32),
    "levit:LeViT": ({"image_size": 64, "dim": (16, 16), "stages": 2, "depth": 1, "heads": (2, 2), "mlp_mult": 2}, 64),
    "cvt:CvT": ({"s1_emb_dim": 8, "s2_emb_dim": 8, "s3_emb_dim": 16, "s3_depth": 1}, 64),
    "twins_svt:TwinsSVT": ({"s1_emb_dim": 8, "s2_emb_dim": 8, "s3_emb_dim": 16, "s4_emb_dim": 16, "s1_patch_size": 2,
                            "s1_local_patch_size": 2, "s2_local_patch_size": 2, "s3_local_patch_size": 2,
                            "s1_global_k": 4, "s2_global_k": 4, "s3_global_k": 2, "s4_global_k": 1,
                            "s4_local_patch_size": 1,
                            "s3_depth": 1}, 64),
    "nest:NesT": ({"num_hierarchies": 2, "block_repeats": (1, 1), "patch_size": 4}, 32),
    "mobile_vit:MobileViT": ({"image_size": (64, 64), "patch_size": (2, 2), "dims": [16, 16, 24],
                              "channels": [8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 32]}, 64),
    "max_vit:MaxViT": ({"depth": (1, 1), "dim_conv_stem": 8, "window_size": 4}, 64),
    "crossformer:CrossFormer": ({"dim": (32, 32, 32, 32), "depth": (1, 1, 1, 1), "global_window_size": (4, 2, 2, 1),
                                 "local_window_size": 2}, 64),
    "scalable_vit:ScalableViT": ({"dim": 8, "heads": (1, 1, 2, 2), "depth": (1, 1, 1, 1), "ssa_dim_key": 8,
                                  "reduction_factor": (4, 2, 1, 1), "window_size": (4, None, None, None)}, 64),
    "sep_vit:SepViT": ({"dim": 8, "heads": (1, 2), "depth": (1, 1), "window_size": 4, "dim_head": 4}, 56),
    "regionvit:RegionViT": ({"dim": (8, 8, 16, 16), "depth": (1, 1, 1, 1), "window_size": 2}, 64),
    "cross_vit:CrossViT": ({"image_size": 64, "sm_patch_size": 8, "lg_patch_size": 16, "sm_dim": 16, "lg_dim": 16,
        "sm_enc_depth": 1, "lg_enc_depth": 1, "depth": 1}, 64),
}  # fmt: skip


def _vit_pytorch() -> Iterator[Architecture]:
    for name, (options, side) in VIT_PYTORCH.items():
        target = f"vit_pytorch.{name}"
        yield Architecture(
            "vit-pytorch", f"vit-pytorch {name}", partial(_make_class, target, VIT, options, (3, side, side))
        )


def _make_class(
    target: str, common: dict[str, Any], options: dict[str, Any], shape: tuple[int, ...], wrap: bool = True
) -> tuple[nn.Module, tuple[int, ...]]:
    made = load(target)
    model = made(**accepted(made.__init__ if inspect.isclass(made) else made, common) | options)
    return (Wrapped(model, lambda model, x: model(x)) if wrap else model), shape


#: Options of `x_transformers.Encoder` and `Decoder`.
X_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("Encoder", {}), "decoder": ("Decoder", {}), "gated linear units": ("Decoder", {"ff_glu": True}),
    "rotary": ("Encoder", {"rotary_pos_emb": True}), "ALiBi": ("Decoder", {"alibi_pos_bias": True}),
    "T5 bias": ("Encoder", {"rel_pos_bias": True}), "RMS norms": ("Encoder", {"use_rmsnorm": True}),
    "scale norms": ("Encoder", {"use_scalenorm": True}), "queries and keys normed": ("Decoder", {"attn_qk_norm": True}),
    "talking heads": ("Encoder", {"attn_pre_talking_heads": True}), "sandwich": ("Encoder", {"sandwich_coef": 1}),
    "macaron": ("Encoder", {"macaron": True}), "gated residual": ("Encoder", {"gate_residual": True}),
    "one key head": ("Decoder", {"attn_one_kv_head": True}), "squared ReLU": ("Decoder", {"ff_relu_squared": True}),
    "gated values": ("Encoder", {"attn_gate_values": True}), "sparse": ("Encoder", {"attn_sparse_topk": 4}),
    "token shifts": ("Decoder", {"shift_tokens": 1}), "residual attention": ("Encoder", {"residual_attn": True}),
    "attention on attention": ("Encoder", {"attn_on_attn": True}), "post norms": ("Encoder", {"pre_norm": False}),
    "hyper-connections": ("Decoder", {"num_residual_streams": 2}), "value residuals": ("Decoder",
        {"add_value_residual": True}),
    "dynamic tanh": ("Encoder", {"use_dynamic_tanh": True}),
}  # fmt: skip


def _x_transformers() -> Iterator[Architecture]:
    for name, (layers, options) in X_TRANSFORMERS.items():
        yield Architecture("x-transformers", f"x-transformers {name}", partial(_make_x_transformer, layers, options))


def _make_x_transformer(layers: str, options: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    stack = load(f"x_transformers:{layers}")(dim=16, depth=2, heads=2, attn_dim_head=8, **options)
    wrapper = load("x_transformers:ContinuousTransformerWrapper")
    return wrapper(dim_in=6, dim_out=CLASSES, max_seq_len=16, attn_layers=stack), (8, 6)


MONAI: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "UNet": ({"channels": (4, 8, 8), "strides": (2, 2), "num_res_units": 1}, (1, 32, 32)),
    "BasicUNet": ({"features": (4, 4, 8, 8, 8, 4)}, (1, 32, 32)),
    "BasicUNetPlusPlus": ({"features": (4, 4, 8, 8, 8, 4)}, (1, 32, 32)),
    "AttentionUnet": ({"channels": (4, 8, 8), "strides": (2, 2)}, (1, 32, 32)),
    "DynUNet": ({"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (4, 8, 8)},
                (1, 32, 32)),
    "SegResNet": ({"init_filters": 8}, (1, 32, 32)), "VNet": ({}, (1, 32, 32)),
    "UNETR": ({"img_size": 32, "feature_size": 4, "hidden_size": 16, "mlp_dim": 16, "num_heads": 2}, (1, 32, 32)),
    "SwinUNETR": ({"feature_size": 12, "depths": (1, 1, 1, 1)}, (1, 64, 64)),
    "HighResNet": ({}, (1, 16, 16)),
    "ViT": ({"img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 16, "mlp_dim": 16, "num_layers": 2,
             "num_heads": 2, "classification": True, "num_classes": CLASSES}, (1, 32, 32)),
    "DenseNet": ({"init_features": 8, "growth_rate": 4, "block_config": (2, 2)}, (1, 32, 32)),
    "Regressor": ({"in_shape": (1, 32, 32), "out_shape": (2,), "channels": (4, 8), "strides": (2, 2)}, (1, 32, 32)),
    "AutoEncoder": ({"channels": (4, 8), "strides": (2, 2)}, (1, 32, 32)),
    "VarAutoEncoder": ({"in_shape": (1, 32, 32), "latent_size": 4, "channels": (4, 8), "strides": (2, 2)}, (1, 32, 32)),
    "AutoencoderKL": ({"channels": (8, 8), "num_res_blocks": (1, 1), "attention_levels": (False, True),
                       "norm_num_groups": 4}, (1, 32, 32)),
    "VQVAE": ({"channels": (8, 8), "downsample_parameters": ((2, 4, 1, 1),) * 2,
               "upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "num_res_layers": 1, "num_res_channels": (8, 8),
               "num_embeddings": 8,
               "embedding_dim": 4}, (1, 32, 32)),
    "MedNeXt": ({"init_filters": 4, "encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2,
                 "bottleneck_expansion_ratio": 2, "blocks_down": (1, 1, 1, 1), "blocks_bottleneck": 1,
                 "blocks_up": (1, 1, 1, 1)}, (1, 32, 32)),
    "FlexibleUNet": ({"backbone": "efficientnet-b0", "pretrained": False}, (3, 64, 64)),
    "PatchDiscriminator": ({"channels": 4, "num_layers_d": 2}, (1, 32, 32)),
    "ResNet": ({"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8], "n_input_channels": 1,
                "num_classes": CLASSES}, (1, 32, 32)),
}  # fmt: skip


def _monai() -> Iterator[Architecture]:
    common = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    for name, (options, shape) in MONAI.items():
        own = common | {"in_channels": shape[0]}
        yield Architecture(
            "MONAI", f"MONAI {name}", partial(_make_class, f"monai.networks.nets:{name}", own, options, shape)
        )


SEGMENTATION = {
    "Unet": "timm-mobilenetv3_small_minimal_100", "Linknet": "mobilenet_v2", "FPN": "efficientnet-b0",
    "DeepLabV3Plus": "mobilenet_v2", "UPerNet": "mit_b0", "Segformer": "mit_b0",
}  # fmt: skip


def _segmentation() -> Iterator[Architecture]:
    for name, encoder in SEGMENTATION.items():
        options = {"encoder_name": encoder, "encoder_weights": None, "classes": 2}
        target = f"segmentation_models_pytorch:{name}"
        make = partial(_make_class, target, {}, options, (3, 64, 64))
        yield Architecture("segmentation-models-pytorch", f"segmentation-models-pytorch {name}", make)


BRAINDECODE = (
    "ATCNet AttentionBaseNet BDTCN CTNet ContraWR Deep4Net EEGConformer EEGInceptionERP EEGInceptionMI "
    "EEGITNet EEGNet EEGNeX EEGTCNet MSVTNet SCCNet ShallowFBCSPNet "
    "SleepStagerBlanco2020 SleepStagerChambon2018 SPARCNet SyncNet TIDNet TSception USleep MEDFormer AttnSleep"
)


def _braindecode() -> Iterator[Architecture]:
    for name in BRAINDECODE.split():
        yield Architecture("braindecode", f"braindecode {name}", partial(_make_braindecode, name))


def _make_braindecode(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    times = {"USleep": 3000, "DeepSleepNet": 3000, "AttnSleep": 3000}.get(name, 512)
    channels = {"DeepSleepNet": 1, "AttnSleep": 1}.get(name, 4)
    common = {
        "n_chans": channels,
        "n_outputs": CLASSES,
        "n_times": times,
        "sfreq": 100,
        "input_window_seconds": times / 100,
    }
    return _make_class(f"braindecode.models:{name}", common, {}, (channels, times))


GRAPHS = "GCN GraphSAGE GIN GAT EdgeCNN PNA"
GRAPH_LAYERS = "ChebConv TAGConv SGConv ARMAConv GATv2Conv TransformerConv GraphConv LEConv ClusterGCNConv GENConv"
EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 5, 2], [1, 0, 2, 1, 3, 2, 4, 3, 0, 4, 2, 5]])
NODES = 6


class OnOneGraph(nn.Module):
    """A network of graphs whose examples are features on the same one, side by side as a graph of many parts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("edges", EDGES)

    def forward(self, x: Tensor) -> Tensor:
        edges = torch.cat([self.edges + NODES * k for k in range(len(x))], 1)
        return self.model(x.flatten(0, 1), edges).unflatten(0, (len(x), NODES))


def _graphs() -> Iterator[Architecture]:
    for name in GRAPHS.split():
        yield Architecture("torch_geometric", f"torch_geometric {name}", partial(_make_graph, name))
    for name in GRAPH_LAYERS.split():
        yield Architecture("torch_geometric", f"torch_geometric {name}", partial(_make_graph_layer, name))


def _make_graph(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    degrees = {
        "aggregators": ["mean", "max"],
        "scalers": ["identity", "amplification"],
        "deg": torch.tensor([0, 1, 4, 1]),
    }
    made = load(f"torch_geometric.nn.models:{name}")
    model = made(5, 8, 2, CLASSES, act="relu", **(degrees if name == "PNA" else {}))
    return OnOneGraph(model), (NODES, 5)


def _make_graph_layer(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    made = load(f"torch_geometric.nn:{name}")
    options = {"ChebConv": {"K": 3}}.get(name, {})
    return OnOneGraph(_Layers(made(5, 8, **options), made(8, CLASSES, **options))), (NODES, 5)


class _Layers(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x, edges)), edges)


#: Packages of few networks.
OTHERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "neuralop.models:FNO": ({"n_modes": (2, 2), "in_channels": 1, "out_channels": 1, "hidden_channels": 4,
        "n_layers": 2},
                            (1, 8, 8)),
    "neuralop.models:UNO": ({"in_channels": 1, "out_channels": 1, "hidden_channels": 4, "uno_out_channels": [4, 4, 4],
                             "uno_n_modes": [[2, 2]] * 3, "uno_scalings": [[1.0, 1.0]] * 3, "n_layers": 3,
                             "channel_mlp_skip": "linear"}, (1, 8, 8)),
    "perceiver_pytorch:Perceiver": ({"num_freq_bands": 2, "max_freq": 4.0, "depth": 1, "input_channels": 3,
        "input_axis": 2,
                                     "num_latents": 4, "latent_dim": 16, "latent_heads": 2, "latent_dim_head": 8,
                                     "cross_dim_head": 8, "num_classes": CLASSES}, (16, 16, 3)),
    "g_mlp_pytorch:gMLPVision": ({"image_size": 32, "patch_size": 8, "num_classes": CLASSES, "dim": 16, "depth": 2},
                                 (3, 32, 32)),
    "pytorch_tcn:TCN": ({"num_inputs": 3, "num_channels": [8, 8]}, (3, 32)),
}  # fmt: skip


def _others() -> Iterator[Architecture]:
    for target, (options, shape) in OTHERS.items():
        package, _, name = target.partition(":")
        yield Architecture(
            "others", f"{package.partition('.')[0]} {name}", partial(_make_class, target, {}, options, shape)
        )
    make = partial(_make_efficientnet)
    yield Architecture("others", "efficientnet_pytorch efficientnet-b0", make)


def _make_efficientnet() -> tuple[nn.Module, tuple[int, ...]]:
    made = load("efficientnet_pytorch:EfficientNet")
    return made.from_name("efficientnet-b0", num_classes=CLASSES, image_size=64), (3, 64, 64)
