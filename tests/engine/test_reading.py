"""How a training reads its images: the cache, work on the device, broken files."""

import shutil

import numpy as np
import pytest
import torch

import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.train.images import BrokenImages
from metric_learning.reader import ImageError, ImageSet

PAIR = ["--loss_name=eml", "--train_batch_size=8", "--lr=0.001", "--total_iter_num=4"]
QUIET = ["--test_iter_step=0", "--save_iter_step=0", "--display_iter_step=1"]


@pytest.fixture
def train(toy_flags, tmp_path):
    """Run stage 2 on the toy tree, or stage 1; returns the run folder."""

    def run(*flags, script=train_pair, base=PAIR):
        return script.main([*toy_flags, *base, *QUIET, f"--model_save_dir={tmp_path}", *flags])

    return run


def weights(folder):
    return load_checkpoint(folder / "last.pt")["model"]


def equal(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_small_images_train_alike_from_the_cache(train, tmp_path):
    """Those of the toy tree are not reduced, so that the cache holds what the files hold."""
    plain = train()
    built = train(f"--cache={tmp_path / 'cache'}")
    opened = train(f"--cache={tmp_path / 'cache'}", "--num_workers=2", "--prefetch=1")
    assert equal(weights(built), weights(plain)) and equal(weights(opened), weights(plain))


def test_the_cache_is_trained_from_and_never_tested_on(train, tmp_path, capsys):
    flags = [f"--cache={tmp_path / 'cache'}", "--cache_size=8"]
    assert not equal(weights(train(*flags)), weights(train()))
    assert "GB for 24 images" in capsys.readouterr().out
    untrained = ["--test_iter_step=1", "--total_iter_num=0"]
    tests = [(train(*untrained, *more) / "stats.jsonl").read_text() for more in ([], flags)]
    assert tests[0] == tests[1] and "recall@1" in tests[0]


def test_augmentation_on_the_device_trains_alike(train, tmp_path):
    flags = ["--transform=standard", "--min_crop_area=0.5"]
    plain = train(*flags)
    on_device = train(*flags, "--augment_on=device", "--num_workers=1")
    assert equal(weights(on_device), weights(plain))


@pytest.fixture
def broken_tree(toy_tree, tmp_path):
    """The toy tree with a broken image in class 2 and one that is no file in class 4."""
    tree = shutil.copytree(toy_tree, tmp_path / "tree")
    broken = [tree / "train" / "class_2" / "1.png", tree / "train" / "class_4" / "3.png"]
    return tree, broken


def test_a_broken_image_is_replaced_counted_and_named_once(train, broken_tree):
    tree, [broken, _] = broken_tree
    broken.write_bytes(broken.read_bytes()[:300])
    flags = [f"--data_dir={tree}", "--on_bad_image=skip", "--train_batch_size=24"]
    elem = ["--loss_name=softmax", "--total_iter_num=3", *flags]
    whole = train(script=train_elem, base=elem)
    log = (whole / "log.txt").read_text()
    assert log.count(str(broken)) == 1 and "another image of its class is taken" in log
    assert "broken: 1 of 24 training images" in log
    with_workers = train("--num_workers=2", script=train_elem, base=elem)
    assert equal(weights(with_workers), weights(whole))


def test_too_many_broken_images_stop_the_run(train, broken_tree, capsys):
    tree, broken = broken_tree
    for path in broken:
        path.write_bytes(b"no image")
    elem = ["--loss_name=softmax", "--total_iter_num=3", "--train_batch_size=24"]
    with pytest.raises(SystemExit) as stop:
        train(f"--data_dir={tree}", "--on_bad_image=skip", script=train_elem, base=elem)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "2 broken images among 24: --on_bad_image=skip tolerates 1 (5%)" in error


def test_a_broken_test_image_is_an_error_all_the_same(train, toy_tree, tmp_path, capsys):
    tree = shutil.copytree(toy_tree, tmp_path / "tree")
    broken = tree / "test" / "class_7" / "2.png"
    broken.write_bytes(b"no image")
    with pytest.raises(SystemExit):
        train(f"--data_dir={tree}", "--on_bad_image=skip", "--test_iter_step=1")
    assert str(broken) in capsys.readouterr().err


def test_broken_images_are_counted_by_path():
    everything = np.ones(100, bool)
    image_set = ImageSet(
        "toy", "train", ["p"] * 100, np.zeros(100, np.int64), {}, everything, everything
    )
    lines = []
    broken = BrokenImages(image_set, lines.append)
    for _ in range(3):
        broken.add({f"{i}.png": f"cannot read image {i}.png" for i in range(5)})
    assert len(lines) == 5
    with pytest.raises(ImageError, match="6 broken images among 100"):
        broken.add({"5.png": "cannot read image 5.png"})
