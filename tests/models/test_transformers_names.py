"""Weights in transformers' naming give what transformers gives, read into timm's models."""

import json
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from metric_learning.models.weights.hub_folder import facts_in
from metric_learning.models.weights.transformers_models import architecture_of
from metric_learning.models.weights.transformers_names import to_timm

transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**SIZE, "image_size": 28, "patch_size": 14}
DINOV3 = {**SIZE, "intermediate_size": 128, "image_size": 32, "num_register_tokens": 4}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
VIT14 = {**VIT, "img_size": 28, "patch_size": 14}
EVA = {
    **VIT,
    **{"img_size": 32, "patch_size": 16, "qkv_bias": True, "init_values": 1e-5},
    **{"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True},
    **{"use_rot_pos_emb": True, "use_abs_pos_emb": False, "num_reg_tokens": 4},
    **{"use_fc_norm": False, "norm_layer": partial(LayerNorm, eps=1e-5), "dynamic_img_size": True},
}
GIANT = {"mlp_ratio": 176 / 32, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
GATED = {"swiglu_mlp": True, "swiglu_align_to": 1}
# Model and options in transformers, and the same in timm.
CASES = {
    "Dinov2": (SMALL, lambda: VisionTransformer(**VIT14, init_values=1.0)),
    "Dinov2 giant": (
        {**SMALL, "use_swiglu_ffn": True},
        lambda: VisionTransformer(**VIT14, init_values=1.0, **GIANT),
    ),
    "Dinov2WithRegisters": (
        SMALL,
        lambda: VisionTransformer(**VIT14, init_values=1.0, reg_tokens=4, no_embed_class=True),
    ),
    "DINOv3ViT": (DINOV3, lambda: Eva(**EVA)),
    "DINOv3ViT gated": (
        {**DINOV3, "use_gated_mlp": True, "hidden_act": "silu"},
        lambda: Eva(**EVA, **GATED),
    ),
    "DINOv3ConvNext": (
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 2, 1, 1]},
        lambda: ConvNeXt(dims=(8, 16, 16, 16), depths=(1, 2, 1, 1), num_classes=0),
    ),
    "SiglipVision": (
        {**SMALL, "intermediate_size": 128, "hidden_act": "gelu"},
        lambda: VisionTransformer(**VIT14, class_token=False, global_pool="map"),
    ),
}


@pytest.mark.parametrize("prefix", ["", "model.image."])
@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_those_of_transformers(case, prefix, tmp_path):
    options, build = CASES[case]
    name = case.split()[0]
    if not hasattr(transformers, f"{name}Model"):
        pytest.skip(f"this transformers has no {name}")
    config = getattr(transformers, f"{name}Config")(**options)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path)  # whose names are those of published files
    stored = load_file(tmp_path / "model.safetensors")
    ours = build().eval()

    for tensors in (stored, theirs.state_dict()):
        own = ours.state_dict()
        named = {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
        found = to_timm({**named, "text.layer.weight": torch.ones(2, 2)}, own)
        assert "text.layer.weight" in found  # to be listed as left out
        ours.load_state_dict({key: found[key] for key in own})
        size = {"DINOv3ViT": 32, "DINOv3ConvNext": 64}.get(name, 28)
        images = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            output = theirs(pixel_values=images)
            expected = output.pooler_output
            if name == "DINOv3ViT":  # timm pools the patches by default
                expected = output.last_hidden_state[:, 5:].mean(1)
            difference = (ours(images) - expected).abs().max() / expected.abs().max()
        assert expected.abs().max() > 0.1 and difference < 1e-5


def test_biases_of_zero_are_left_out_where_the_model_has_none():
    tensors = {
        "embeddings.patch_embeddings.weight": torch.ones(4, 3, 2, 2),
        "layer.0.attention.q_proj.weight": torch.ones(4, 4),
        "layer.0.attention.q_proj.bias": torch.zeros(4),
    }
    assert "blocks.0.attn.q_bias" not in to_timm(tensors, {"norm.weight"})
    assert "blocks.0.attn.q_bias" in to_timm(tensors, {"blocks.0.attn.q_bias"})
    tensors["layer.0.attention.q_proj.bias"] += 1
    assert "blocks.0.attn.q_bias" in to_timm(tensors, {"norm.weight"})


def test_tensors_of_others_are_as_they_were():
    tensors = {"conv1.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    assert to_timm(tensors, ()) is tensors


@pytest.mark.parametrize(
    ("config", "name", "size"),
    [
        (
            {
                "model_type": "dinov2",
                "hidden_size": 384,
                "num_hidden_layers": 12,
                "patch_size": 14,
                "image_size": 518,
            },
            "vit_small_patch14_dinov2",
            518,
        ),
        (
            {
                "model_type": "dinov2_with_registers",
                "hidden_size": 1536,
                "num_hidden_layers": 40,
                "patch_size": 14,
                "image_size": 518,
            },
            "vit_giant_patch14_reg4_dinov2",
            518,
        ),
        (
            {
                "model_type": "dinov3_vit",
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "patch_size": 16,
                "image_size": 224,
            },
            "vit_base_patch16_dinov3_qkvb",
            224,
        ),
        (
            {
                "model_type": "dinov3_vit",
                "hidden_size": 384,
                "num_hidden_layers": 12,
                "patch_size": 16,
                "image_size": 224,
                "use_gated_mlp": True,
            },
            "vit_small_plus_patch16_dinov3_qkvb",
            224,
        ),
        (
            {
                "model_type": "dinov3_convnext",
                "hidden_sizes": [96, 192, 384, 768],
                "depths": [3, 3, 9, 3],
                "image_size": 224,
            },
            "convnext_tiny.dinov3_lvd1689m",
            224,
        ),
        (
            {
                "model_type": "siglip",
                "vision_config": {
                    "hidden_size": 768,
                    "num_hidden_layers": 12,
                    "patch_size": 16,
                    "image_size": 256,
                },
            },
            "vit_base_patch16_siglip_256",
            256,
        ),
        (
            {
                "model_type": "siglip",
                "vision_config": {
                    "hidden_size": 1152,
                    "num_hidden_layers": 27,
                    "patch_size": 14,
                    "image_size": 384,
                },
            },
            "vit_so400m_patch14_siglip_384",
            384,
        ),
    ],
)
def test_a_config_names_a_model_of_timm(config, name, size):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    assert architecture_of(config, "config.json") == (name, size)


@pytest.mark.parametrize(
    "config", [{"model_type": "siglip2"}, {"model_type": "bert"}, {}, {"model_type": "dinov2"}]
)
def test_other_configs_are_refused(config):
    with pytest.raises(ValueError, match=r"config.json: a model of the type .* is not known"):
        architecture_of(config, "config.json")


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        ({"size": {"height": 28, "width": 28}}, "squash"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True}, None),
        ({"size": 28}, None),
        ({}, None),
    ],
)
def test_images_are_squashed_where_transformers_does_it(preprocessor, expected, tmp_path):
    config = {"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12}
    config |= {"patch_size": 14, "image_size": 518}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert facts_in(tmp_path).get("test_resize") == expected
