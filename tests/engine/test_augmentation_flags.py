"""The flags of augmentation: what they become, where they are refused, and that they train."""

import pytest
import torch

import train_elem
from metric_learning.engine.options import tables
from metric_learning.engine.options.training import settle
from metric_learning.engine.options.training_table import ELEM, parse_training
from metric_learning.engine.parallel.world import World
from metric_learning.reader import DATASETS, load_image_set
from metric_learning.reader.augment import TRAIN_CROPS, Augmentation
from metric_learning.reader.preprocessing import TEST_RESIZES

ALL = {
    "crop_aspect": ("1/2,1.5", (0.5, 1.5)),
    "resize_first": ("40,36", (40, 36)),
    "color_jitter": ("0.4,0.3,0.2,0.1", (0.4, 0.3, 0.2, 0.1)),
    "rand_augment": ("2,9", (2, 9)),
    "random_erasing": ("0.25", 0.25),
}
GIVEN = [f"--{name}={text}" for name, (text, _) in ALL.items()]


@pytest.fixture
def settled(toy_tree):
    def run(*argv):
        argv = ["--model=test_resnet", "--image_shape=3,32,32", "--use_gpu=False", *argv]
        flags = parse_training("", ELEM, train_elem.FLAGS, argv)
        return settle(flags, load_image_set("folder", toy_tree, "train"), World())

    return run


def test_the_table_of_flags_knows_what_the_reader_does():
    assert tables.TEST_RESIZES == TEST_RESIZES
    assert tables.TRAIN_CROPS == TRAIN_CROPS and set(tables.DATASETS) == set(DATASETS)


def test_flags_reach_the_augmentation(settled):
    assert settled().reading.augmentation == Augmentation()
    expected = {name: value for name, (_, value) in ALL.items()}
    assert settled(*GIVEN).reading.augmentation == Augmentation(**expected)
    assert settled("--color_jitter=0,0,0,0").reading.augmentation == Augmentation()
    cropped = settled("--train_crop=random", "--resize_first=36").reading.augmentation
    assert cropped == Augmentation(train_crop="random", resize_first=(36,))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_crop=random"], "--resize_first=256"),
        (["--train_crop=random", "--resize_first=31"], "31 is smaller than the crop of 32"),
        (["--train_crop=random", "--resize_first=36", "--min_crop_area=0.2"], "--min_crop_area"),
        (["--train_crop=random", "--resize_first=36", "--crop_aspect=1,1"], "--crop_aspect"),
        *(
            (["--augment_on=device", flag], f"{flag.split('=')[0]} is done by the workers")
            for flag in (*GIVEN[1:],)
        ),
        (
            ["--augment_on=device", "--train_crop=random", "--resize_first=36"],
            "--resize_first, --train_crop=random is done by the workers",
        ),
        (["--trainable=head", "--pretrained_model=x", "--tta_flip"], "features of one view"),
        (["--test_iter_step=0", "--tta_flip"], "--tta_flip is not used .nothing is tested"),
    ],
)
def test_what_nothing_would_use_is_refused(settled, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        settled(*flags)
    assert "\n" not in str(error.value)


def test_the_device_crops_to_another_aspect(settled):
    options = settled("--augment_on=device", "--transform=standard", "--crop_aspect=1,1")
    assert options.reading.augmentation.crop_aspect == (1.0, 1.0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--color_jitter=0.4", "expected BRIGHTNESS,CONTRAST,SATURATION,HUE"),
        ("--color_jitter=0.4,0.4,0.4,0.6", "a hue of at most 0.5"),
        ("--color_jitter=0.4,-1,0.4,0", "numbers of at least 0"),
        ("--color_jitter=a,b,c,d", "expected comma-separated numbers"),
        ("--rand_augment=0,9", "operations of 1 or more"),
        ("--rand_augment=2,31", "a strength of 0 to 30"),
        ("--rand_augment=2", "expected N,M"),
        ("--random_erasing=1", "expected a number of 0 to below 1"),
        ("--crop_aspect=4/3,3/4", "expected LOW,HIGH"),
        ("--crop_aspect=1/0,2", "expected comma-separated numbers"),
        ("--crop_aspect=0,1", "above 0"),
        ("--resize_first=0", "expected a short side, or HEIGHT,WIDTH"),
        ("--resize_first=1,2,3", "expected a short side, or HEIGHT,WIDTH"),
        ("--train_crop=all", "invalid choice"),
    ],
)
def test_wrong_values_are_one_line(flag, message, error_of):
    assert message in error_of(train_elem.main, [flag])


def test_a_training_is_augmented_and_resumed_as_it_was(toy_flags, tmp_path, error_of):
    """3 + 3 steps equal 6 to the bit; the flags are those of the checkpoint."""
    argv = [*toy_flags, "--model=test_resnet", "--train_batch_size=8", "--test_iter_step=0"]
    argv += [f"--model_save_dir={tmp_path}", "--save_iter_step=0"]

    def weights_of(*flags):
        folder = train_elem.main([*argv, *flags])
        return torch.load(folder / "last.pt", weights_only=True)["model"], folder

    whole, _ = weights_of(*GIVEN, "--total_iter_num=6")
    plain, _ = weights_of("--total_iter_num=6")
    _, half = weights_of(*GIVEN, "--total_iter_num=3", "--run_name=half")
    resumed, _ = weights_of(f"--checkpoint={half / 'last.pt'}", "--total_iter_num=6")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)
    again = [*argv, "--run_name=half", "--checkpoint=auto", "--total_iter_num=6", *GIVEN[:-1]]
    error = error_of(train_elem.main, [*again, "--random_erasing=0.5"])
    assert "--random_erasing=0.25, found --random_erasing=0.5" in error
