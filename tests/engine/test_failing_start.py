"""A start that fails is said: a class layer that guesses, a recall at chance."""

import math

import pytest
import torch

import train_elem
from metric_learning.engine.train.watch import Watch, at_chance, guesses_of
from metric_learning.losses import ELEM_LOSSES, build_loss
from metric_learning.losses.jointloss import JointLoss

C, D = 50, 8
GUESSES = (math.log(C),)


def watch():
    return Watch(True, False, False)


def judged(own, losses, guesses=GUESSES, name="loss"):
    return [own.judge_classes({"loss": 99.0, name: loss}, 50, guesses, C) for loss in losses]


def test_a_loss_at_the_logarithm_of_the_classes_is_said_once_and_again_after_recovery():
    stuck, learned = math.log(C) * 1.01, math.log(C) * 0.9
    said = judged(watch(), [stuck] * 12)
    assert [bool(lines) for lines in said] == [n == 4 for n in range(12)]  # 250 images, 5 a class
    [line] = said[4]
    assert "warning: the class loss is 3.9511, that of a guess among 50 classes is 3.9120" in line
    assert not any(judged(watch(), [learned] * 12))
    own = watch()
    judged(own, [stuck] * 5 + [learned] * 4)
    assert sum(map(bool, judged(own, [stuck] * 8))) == 1


def test_of_a_joint_loss_the_class_loss_is_judged_and_others_have_no_guess():
    assert any(judged(watch(), [math.log(C)] * 6, name="loss_cls"))
    assert not any(judged(watch(), [math.log(C)] * 6, guesses=()))
    assert guesses_of(build_loss("supcon"), C) == []
    joint = JointLoss(build_loss("supcon"), build_loss("softmax", class_dim=C, embedding_size=D), 1)
    assert guesses_of(joint, C) == [math.log(C)]


@pytest.mark.parametrize("name", ["softmax", "arcmargin", "cosface", "combined", "normsoftmax"])
def test_a_guess_is_the_loss_of_embeddings_that_no_class_is_near(name):
    criterion = build_loss(name, class_dim=C, embedding_size=2 * D)
    with torch.no_grad():
        criterion.weight[:, D:] = 0.0  # so that all cosines with the other half are 0
    embeddings = torch.randn(4, 2 * D)
    embeddings[:, :D] = 0.0
    loss, _ = criterion(embeddings, torch.arange(4))
    assert any(
        abs(float(loss.detach()) - guess) < 1e-3 * guess for guess in guesses_of(criterion, C)
    )


@pytest.mark.parametrize("name", ELEM_LOSSES)
def test_all_class_losses_can_be_asked(name):
    guesses = guesses_of(build_loss(name, class_dim=C, embedding_size=D), C)
    assert all(math.isfinite(guess) and guess > 0 for guess in guesses)


def test_a_recall_is_at_chance_within_two_deviations():
    assert at_chance(0.011, 0.01, 1000) and at_chance(0.0, 0.01, 1000)
    assert not at_chance(0.02, 0.01, 1000)
    [line] = at_chance(0.2, 0.2, 16)
    assert "test_recall 0.20000 is at chance (0.20000, its deviation 0.10000)" in line


def test_a_training_that_learns_nothing_says_so(toy_flags, tmp_path, capsys):
    flags = [*toy_flags, "--model=test_resnet", "--lr=0", "--init_class_layer=zero"]
    flags += ["--train_batch_size=12", "--total_iter_num=40", "--test_iter_step=0"]
    train_elem.main([*flags, f"--model_save_dir={tmp_path}", "--display_iter_step=5"])
    out = capsys.readouterr().out
    assert out.count("warning: the class loss is 1.7918, that of a guess among 6 classes") == 1
