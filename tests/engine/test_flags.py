"""Parsing of flags: the reference's names and defaults, booleans, config files, wrong ones."""

import pytest

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.common.flags import Flag, parse_flags, positive
from metric_learning.engine.options.training import settle
from metric_learning.engine.parallel.world import World
from metric_learning.reader import load_image_set

SCRIPTS = {"elem": train_elem, "pair": train_pair, "eval": eval_script, "infer": infer}


def parse(script, *argv):
    return parse_flags("", SCRIPTS[script].FLAGS, argv)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "elem",
            {
                "model": "ResNet50",
                "embedding_size": 0,
                "train_batch_size": 256,
                "test_batch_size": 50,
                "image_shape": None,
                "lr": 0.01,
                "lr_strategy": "piecewise_decay",
                "lr_steps": (15000, 25000),
                "total_iter_num": 30000,
                "display_iter_step": 10,
                "test_iter_step": 1000,
                "save_iter_step": 1000,
                "use_gpu": True,
                "pretrained_model": None,
                "checkpoint": None,
                "model_save_dir": "output",
                "loss_name": "softmax",
            },
        ),
        (
            "pair",
            {
                "train_batch_size": 120,
                "test_batch_size": 50,
                "lr": 0.0001,
                "lr_steps": (100000,),
                "total_iter_num": 100000,
                "test_iter_step": 5000,
                "save_iter_step": 5000,
                "loss_name": "triplet",
            },
        ),
        ("eval", {"model": "ResNet50", "batch_size": 10, "embedding_size": 0}),
        ("infer", {"model": "ResNet50", "batch_size": 1, "embedding_size": 0}),
    ],
)
def test_defaults_are_the_reference_s(script, expected):
    flags = parse(script)
    assert {name: getattr(flags, name) for name in expected} == expected
    assert not flags.given


FOLDER = Flag("folder", str, None, "the folder to read")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a"], ("a", 10, {"folder"})),
        (["--batch_size=3", "a"], ("a", 3, {"folder", "batch_size"})),
        (["a", "--batch_size", "3", " "], ("a", 3, {"folder", "batch_size"})),
        (["--batch_size=3"], (None, 3, {"batch_size"})),
        ([], (None, 10, set())),
    ],
)
def test_a_positional_may_stand_anywhere_or_be_left_out(argv, expected):
    flags = (Flag("batch_size", positive, 10, "images per batch"),)
    found = parse_flags("", flags, argv, FOLDER)
    assert (found.folder, found.batch_size, found.given) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["a", "b"], "unrecognized arguments: b"), (["a", "--x=1"], "unknown flag --x")],
)
def test_a_second_positional_or_a_wrong_flag_beside_one_is_an_error(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags("", (), argv, FOLDER)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_help_shows_the_positional(capsys):
    with pytest.raises(SystemExit):
        parse_flags("", (), ["--help"], FOLDER)
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith("[--flag=value ...] FOLDER") and "to read" in text


@pytest.mark.parametrize("word", ["False", "false", "no", "off", "0", "NO"])
def test_words_for_false(word):
    assert parse("eval", f"--use_gpu={word}").use_gpu is False


@pytest.mark.parametrize("word", ["True", "yes", "on", "1"])
def test_words_for_true(word):
    assert parse("eval", "--use_gpu", word).use_gpu is True


def test_a_blank_behind_a_backslash_is_ignored():
    flags = parse("infer", "--batch_size=1", " ")
    assert flags.batch_size == 1 and flags.given == {"batch_size"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--use_gpu=maybe", "expected True or False, found 'maybe'"),
        ("--batch_size=0", "expected an integer of at least 1, found '0'"),
        ("--image_shape=3,224,200", "expected 3,SIZE,SIZE (square), found '3,224,200'"),
        ("--bacth_size=3", "unknown flag --bacth_size: did you mean --batch_size?"),
        ("--batch=3", "unknown flag --batch"),
        ("--dataset=imagenet", "invalid choice: 'imagenet'"),
        ("--amp=float8", "expected one of auto, off, bfloat16"),
        ("--ks=1,x", "expected comma-separated integers"),
        ("stray", "unrecognized arguments: stray"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(argument, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("eval", argument)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_an_unknown_loss_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        parse("pair", "--loss_name=tripplet")
    error = capsys.readouterr().err
    assert all(name in error for name in ("triplet", "quadruplet", "eml", "npairs"))


def test_config_file_gives_flags_and_the_command_line_wins(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("lr: 0.5\nlr_steps: [3, 4]\nuse_gpu: no\nrun_name: null\nloss_name: eml\n")
    flags = parse("pair", f"--config={config}", "--lr=0.25")
    values = flags.lr, flags.lr_steps, flags.use_gpu, flags.loss_name
    assert values == (0.25, (3, 4), False, "eml")
    assert flags.given == {"lr", "lr_steps", "use_gpu", "loss_name", "config"}


def test_the_command_line_replaces_the_alternative_of_a_config(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("num_epochs: 5\n")
    flags = parse("elem", f"--config={config}", "--total_iter_num=3")
    assert flags.given == {"total_iter_num", "config"} and flags.num_epochs is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 3", "unknown flag learning_rate"),
        ("- lr", "expected lines of `flag: value`"),
        ("lr: [", "is not YAML"),
    ],
)
def test_a_wrong_config_is_an_error(tmp_path, text, message):
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("pair", f"--config={config}")


@pytest.fixture
def settled(toy_tree):
    """Settle the options of a training on the toy tree from its flags."""

    def settle_flags(script, *argv):
        flags = parse(script, "--use_gpu=False", *argv)
        return settle(flags, load_image_set("folder", toy_tree, "train"), World())

    return settle_flags


def test_a_flag_of_another_loss_is_refused(settled):
    with pytest.raises(ValueError, match="--margin is not used by --loss_name=eml"):
        settled("pair", "--loss_name=eml", "--margin=0.3")


def test_options_not_given_are_the_loss_s_own(settled):
    options = settled("elem", "--loss_name=arcmargin", "--arc_margin=0.3")
    expected = {"arc_scale": 80.0, "arc_margin": 0.3, "arc_easy_margin": False}
    assert options.loss.options == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_describes_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"--{flag.name}" in text and flag.help for flag in SCRIPTS[script].FLAGS)


def test_a_flag_that_repeats_lists_its_values(tmp_path):
    flags = [Flag("word", str, (), "a word", repeats=True)]
    (tmp_path / "one.yaml").write_text("word: a, b")
    (tmp_path / "two.yaml").write_text("word: ['a, b', c]")
    for argv, expected in (
        ([], ()),
        (["--word=a, b", "--word=c"], ["a, b", "c"]),
        ([f"--config={tmp_path / 'one.yaml'}"], ["a, b"]),
        ([f"--config={tmp_path / 'two.yaml'}"], ["a, b", "c"]),
        ([f"--config={tmp_path / 'two.yaml'}", "--word=d"], ["d"]),
    ):
        assert parse_flags(None, flags, argv).word == expected
