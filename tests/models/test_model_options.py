"""What weights files say of a model's options, and which of their parts they may lack."""

import pytest
import torch

from metric_learning.models import (
    MODEL_OPTIONS,
    build_model,
    load_weights,
    options_of,
    save_weights,
)

METADATA = {"model": "test_resnet", "embedding_size": 8}
HEAD = {"pooling": "gem", "feature_norm": "bnneck"}


@pytest.fixture
def model():
    """A model with every part that a backbone alone lacks, away from its initial weights."""
    model = build_model("test_resnet", 8, **HEAD)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def test_a_trained_model_settles_all_options_and_a_converted_one_those_it_names():
    assert options_of({"flags": {}}) == MODEL_OPTIONS
    assert options_of({"flags": {}, "pooling": "gem"}) == MODEL_OPTIONS | {"pooling": "gem"}
    assert options_of({"pooling": "gem"}) == {"pooling": "gem"}
    assert options_of({}) == {}


def test_round_trip(model, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(model, path, METADATA | HEAD)
    loaded = build_model("test_resnet", 8, path, **HEAD)
    state = model.state_dict()
    assert {"backbone.global_pool.pool.p", "feature_norm.running_var"} <= set(state)
    assert all(torch.equal(state[key], value) for key, value in loaded.state_dict().items())
    assert loaded.options == MODEL_OPTIONS | HEAD


@pytest.mark.parametrize("name", ["foreign.pth", "trained.safetensors"])
def test_new_parts_start_as_new_on_a_backbone(name, tmp_path):
    plain = build_model("test_resnet")
    torch.save(plain.backbone.state_dict(), tmp_path / "foreign.pth")
    metadata = {"model": "test_resnet", "embedding_size": 0, "flags": {}}
    save_weights(plain, tmp_path / "trained.safetensors", metadata)
    report = load_weights(build_model("test_resnet", 8, **HEAD), tmp_path / name)
    norm = ("weight", "bias", "running_mean", "running_var")
    assert report.missing == [
        "backbone.global_pool.pool.p",
        *(f"feature_norm.{name}" for name in norm),
        *("embedding.weight", "embedding.bias"),
    ]
    assert not report.unexpected


@pytest.mark.parametrize(
    ("trained", "own", "message"),
    [
        (
            HEAD,
            {"feature_norm": "bnneck"},
            "trained with --pooling=gem, the model has --pooling=ow",
        ),
        (HEAD, {"pooling": "gem", "feature_norm": "layernorm"}, "pass --feature_norm=bnneck"),
        # Nothing but the metadata tells these apart.
        ({"pooling": "max"}, {}, "pass --pooling=max"),
        ({"feature_norm": "layernorm"}, {}, "pass --feature_norm=layernorm"),
        ({"last_stride": 1}, {}, "pass --last_stride=1"),
    ],
)
def test_an_option_that_the_weights_were_trained_with_is_asked_for(trained, own, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(build_model("test_resnet", **trained), path, METADATA | trained)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(build_model("test_resnet", **own), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["feature_norm.running_mean", "feature_norm.weight"])
def test_half_a_part_is_an_error(key, model, tmp_path):
    state = {name: value for name, value in model.state_dict().items() if name != key}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"1 missing \({key}\)"):
        load_weights(model, tmp_path / "w.pth")
