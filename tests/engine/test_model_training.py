"""What training does with the options of a model, and the size that it takes images at."""

import pytest
import torch
from building import build_run
from torch import nn

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.common.flags import parse_flags
from metric_learning.engine.embed.network import build_network, check_image_size
from metric_learning.engine.options import evaluation
from metric_learning.engine.options.evaluation import settle_embedding
from metric_learning.engine.parallel.world import World
from metric_learning.engine.train.train import set_train_mode
from metric_learning.models import build_model, image_size_of

HEAD = ["--pooling=gem", "--feature_norm=bnneck", "--embedding_size=8"]
GEM = "backbone.global_pool.pool.p"


@pytest.fixture
def training_of(tiny_flags):
    """Build the training of a tiny network that flags of stage 1 describe."""

    def build(*flags):
        return build_run(train_elem, [*tiny_flags, *flags])

    return build


def test_gem_and_neck_are_trained_as_the_head_and_not_decayed(training_of):
    learner = training_of(*HEAD, "--lr_head_mult=7", "--decay_norm_and_bias=False").learner
    parameters = dict(learner.model.named_parameters())
    settings = {
        id(p): (group["lr_mult"], group["weight_decay"])
        for group in learner.optimizer.param_groups
        for p in group["params"]
    }
    in_head = [GEM, "feature_norm.weight", "embedding.bias"]
    assert [settings[id(parameters[name])] for name in in_head] == [(7.0, 0.0)] * 3
    assert settings[id(parameters["embedding.weight"])] == (7.0, 1e-4)
    assert settings[id(parameters["backbone.layer1.0.conv1.weight"])] == (1.0, 1e-4)


def test_a_norm_without_weights_has_no_rate_of_its_own(toy_flags):
    argv = [*toy_flags, "--loss_name=triplet", "--lr_head_mult=5", "--feature_norm=layernorm"]
    with pytest.raises(ValueError, match="--lr_head_mult is not used: neither a head"):
        build_run(train_pair, argv)


def test_frozen_batch_norm_is_the_backbone_s():
    model = build_model("test_resnet", feature_norm="bnneck")
    set_train_mode(model, freeze_bn=True)
    assert model.feature_norm.training and not model.backbone.bn1.training
    set_train_mode(model, freeze_bn=False)
    assert model.backbone.bn1.training


def test_a_chunk_of_one_image_is_too_small_for_the_neck(training_of):
    flags = ["--freeze_bn=True", "--chunk_size=1"]
    training_of(*flags)
    with pytest.raises(ValueError, match="without --feature_norm=bnneck"):
        training_of(*flags, "--feature_norm=bnneck")


def settled_work(script, *argv):
    """Return the options of a model with random weights, as eval.py or infer.py settles them."""
    flags = parse_flags("", script.FLAGS, ["--pretrained_model=random", *argv])
    return settle_embedding(flags, World(), is_quiet=True)


def settled_model(*argv):
    """Return the options of a model with random weights, as eval.py settles them."""
    return settled_work(eval_script, *argv).model


@pytest.mark.parametrize(("script", "default"), [(eval_script, 10), (infer, 1)])
def test_the_default_batch_is_the_reference_s_but_for_a_gpu(monkeypatch, script, default):
    assert settled_work(script, "--device=cpu").batch_size == default
    gpu = torch.device("cuda")
    monkeypatch.setattr(evaluation, "choose_device", lambda *_: gpu)
    work = settled_work(script)
    assert work.batch_size == work.flags["batch_size"] == 64
    assert settled_work(script, "--batch_size=3").batch_size == 3


@pytest.mark.parametrize(
    ("model", "size"),
    [("ResNet18", 224), ("Xception", 299), ("test_resnet", 160), ("test_vit", 160)],
)
def test_the_default_size_is_that_of_the_weights(model, size):
    assert build_model(model).image_size == image_size_of(model) == (size, size)
    assert settled_model(f"--model={model}").image_shape == (3, size, size)


def test_a_given_size_is_kept():
    options = settled_model("--model=test_vit", "--image_shape=3,64,64")
    assert build_network(options).image_size == (64, 64) and options.image_shape == (3, 64, 64)


def test_a_model_without_a_feature_of_the_whole_image_is_an_error():
    model = build_model("test_resnet")
    model.backbone = nn.Conv2d(3, model.embedding_size, 8)
    with pytest.raises(ValueError, match="instead of one feature: choose another --model"):
        check_image_size(model, 32)
