"""Adapters beside the linear layers of a backbone, against peft's own merge."""

import copy
import sys

import pytest
import torch
from torch import nn

from metric_learning.models import add_lora, build_model, has_lora, merged_state

peft = pytest.importorskip("peft")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def adapted(embedding_size=4):
    """A model, and the same with adapters that have moved."""
    torch.manual_seed(0)
    plain = build_model("test_vit", embedding_size, image_size=32).eval()
    model = copy.deepcopy(plain)
    add_lora(model, 3)
    return plain, model


def moved(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def test_nothing_changes_before_the_first_step():
    plain, model = adapted()
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain(IMAGES))
    assert has_lora(model) and not has_lora(plain)
    state, own = merged_state(model), plain.state_dict()
    assert [*state] == [*own] and all(torch.equal(state[name], own[name]) for name in own)


def test_adapters_and_the_head_train_and_nothing_else():
    _, model = adapted()
    model(IMAGES).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    in_backbone = [name for name in trained if name.startswith("backbone.")]
    assert in_backbone and all(".lora_" in name for name in in_backbone)
    assert {"embedding.weight", "embedding.bias"} <= trained
    linear = [m for m in model.backbone.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(linear) == 6 * 4  # qkv, proj, fc1 and fc2 of each block
    assert linear[0].lora_A["default"].weight.shape == (3, 64)


def test_the_merged_state_is_what_peft_merges():
    plain, model = adapted()
    state = merged_state(moved(model))
    merged = copy.deepcopy(model)
    for module in merged.backbone.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.merge()
            assert module.scaling["default"] == 1.0
    for name, value in merged.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(state[name.replace(".base_layer.", ".")], value)

    with torch.no_grad():
        expected, before = model(IMAGES), plain(IMAGES)
        plain.load_state_dict(state)
        torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert (expected - before).abs().max() > 1e-3


def test_a_backbone_without_linear_layers_is_an_error():
    with pytest.raises(ValueError, match="--lora_rank is not used: test_resnet has no linear"):
        add_lora(build_model("test_resnet", 4), 2)


def test_without_peft_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="^--lora_rank needs the package peft: pip install peft$"):
        add_lora(build_model("test_vit", image_size=32), 2)
