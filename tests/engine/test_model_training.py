"""What training does with the options of a model, and the size that it takes images at."""

import pytest
from torch import nn

import eval as eval_script
import train_elem
import train_pair
from metric_learning.common.flags import parse_flags
from metric_learning.engine.embed.network import check_image_size, model_of
from metric_learning.engine.parallel.distributed import World
from metric_learning.engine.train.fit import set_train_mode
from metric_learning.engine.train.setup import set_up
from metric_learning.models import build_model

HEAD = ["--pooling=gem", "--feature_norm=bnneck", "--embedding_size=8"]
GEM = "backbone.global_pool.pool.p"


@pytest.fixture
def training_of(tiny_flags):
    """Build the training of a tiny network that flags of stage 1 describe."""

    def build(*flags):
        args, given = parse_flags("", train_elem.FLAGS, [*tiny_flags, *flags])
        return set_up(args, given, train_elem.make_sampler, World())

    return build


def test_gem_and_neck_are_trained_as_the_head_and_not_decayed(training_of):
    training = training_of(*HEAD, "--lr_head_mult=7", "--decay_norm_and_bias=False")
    parameters = dict(training.model.named_parameters())
    settings = {
        id(p): (group["lr_mult"], group["weight_decay"])
        for group in training.optimizer.param_groups
        for p in group["params"]
    }
    in_head = [GEM, "feature_norm.weight", "embedding.bias"]
    assert [settings[id(parameters[name])] for name in in_head] == [(7.0, 0.0)] * 3
    assert settings[id(parameters["embedding.weight"])] == (7.0, 1e-4)
    assert settings[id(parameters["backbone.layer1.0.conv1.weight"])] == (1.0, 1e-4)


def test_a_norm_without_weights_has_no_rate_of_its_own(toy_flags):
    argv = [*toy_flags, "--loss_name=triplet", "--lr_head_mult=5", "--feature_norm=layernorm"]
    args, given = parse_flags("", train_pair.FLAGS, argv)
    with pytest.raises(ValueError, match="--lr_head_mult is not used: neither a head"):
        set_up(args, given, train_pair.make_sampler, World())


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


@pytest.mark.parametrize(
    ("model", "size"),
    [("ResNet18", 224), ("Xception", 299), ("test_resnet", 160), ("test_vit", 160)],
)
def test_the_default_size_is_that_of_the_weights(model, size):
    for script in (train_elem, eval_script):
        args, _ = parse_flags("", script.FLAGS, [f"--model={model}"])
        assert model_of(args).image_size == size and args.image_shape == (3, size, size)


def test_a_given_size_is_kept():
    argv = ["--model=test_vit", "--image_shape=3,64,64"]
    args, _ = parse_flags("", eval_script.FLAGS, argv)
    assert model_of(args).image_size == 64 and args.image_shape == (3, 64, 64)


def test_a_model_without_a_feature_of_the_whole_image_is_an_error():
    model = build_model("test_resnet")
    model.backbone = nn.Conv2d(3, model.embedding_size, 8)
    with pytest.raises(ValueError, match="instead of one feature: choose another --model"):
        check_image_size(model, 32)
