"""Parsing of flags: the reference's names and defaults, booleans, config files, wrong ones."""

import os
from dataclasses import replace

import pytest

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.common import flags as common_flags
from metric_learning.common.flags import Flag, last_of_each, parse_flags, positive
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.engine.options.training import settle
from metric_learning.engine.options.training_table import PAIR, parse_training
from metric_learning.engine.parallel.world import World
from metric_learning.engine.report import __main__ as report
from metric_learning.reader import load_image_set

REFUSE_REPEATED = common_flags._refuse_repeated  # which a fixture puts aside for other tests
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


@pytest.mark.parametrize("argv", [["a", "--topk=3", "b"], ["--topk=3", "a", "b"], ["a", "b"], []])
def test_a_positional_may_be_a_list(argv):
    folders = replace(FOLDER, repeats=True, default=())
    found = parse_flags("", [Flag("topk", int, 1, "")], argv, folders)
    assert list(found.values[FOLDER.name]) == [word for word in argv if word[0] != "-"]


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
        ("--image_shape=3,224", "expected 3,HEIGHT,WIDTH (channels, pixels), found '3,224'"),
        ("--bacth_size=3", "unknown flag --bacth_size: did you mean --batch_size?"),
        ("--batch=3", "unknown flag --batch"),
        ("--dataset=imagenet", "invalid choice: 'imagenet'"),
        ("--amp=float8", "expected one of auto, off, tf32, bfloat16"),
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
        ("learning_rate: 3", "unknown flag learning_rate: did you mean --lr?"),
        ("images: photos", "unknown flag images: it belongs to infer.py"),
        ("- lr", "expected lines of `flag: value`"),
        ("", "expected lines of `flag: value`"),
        ("lr: [", "is not YAML"),
        ("lr: 1\nseed: 2\nlr: 2", "recipe.yaml:3: lr is given twice"),
        ("batch_size: 2\ntrain_batch_size: 2", "batch_size are the same flag"),
        ("model: ''", "model has an empty value"),
        ("lr:", "lr has an empty value"),
        ("lr_steps: []", "lr_steps has an empty value"),
        ("seed: &a 1\nlr: *a", "recipe.yaml:1: anchors, aliases and tags"),
        ("seed: !!python/object/apply:os.getpid []", "expected a text|empty value"),
        ("seed: !!int 3", "anchors, aliases and tags"),
        ("lr: {a: 1}", "recipe.yaml:1: expected a text, a number or a list"),
        ("lr: " + 3000 * "[" + 3000 * "]", "expected a text, a number or a list"),
        ("lr: 1\n---\nlr: 2", "recipe.yaml:2: a second document"),
        ("lr: 1" + 2**20 * " ", "at most 1,048,576 bytes"),
        ("run_name: \udcff", "expected UTF-8 text"),
    ],
)
def test_a_wrong_config_is_an_error(tmp_path, text, message):
    config = tmp_path / "recipe.yaml"
    config.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        parse_training("", PAIR, train_pair.FLAGS, [f"--config={config}"])


def test_a_config_s_values_are_read_as_the_flags_themselves(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("run_name: no\nseed: 010\nlr: 1e-4\ntrain_classes: 0123\nmodel: ~\n")
    flags = parse("pair", f"--config={config}")
    found = flags.run_name, flags.seed, flags.lr, flags.train_classes, flags.model
    assert found == ("no", 10, 1e-4, "0123", "ResNet50")
    config.write_text("run_name: 'null'\nseed: 0x10")
    with pytest.raises(SystemExit):
        parse("pair", f"--config={config}")


def test_a_config_that_is_no_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in (tmp_path, tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ValueError, match="expected a regular file"):
            parse("eval", f"--config={name}")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_empty_value_is_refused_at_every_flag(script, capsys):
    for flag in (*SCRIPTS[script].FLAGS, Flag("config", str, None, "")):
        for words in ([f"--{flag.name}="], [f"--{flag.name}= "], [f"--{flag.name}", ""]):
            with pytest.raises(SystemExit) as stop:
                parse(script, *words)
            error = capsys.readouterr().err
            assert stop.value.code == 2 and f"--{flag.name} has an empty value" in error, words


def test_an_empty_argument_is_refused(error_of):
    assert "an argument is empty" in error_of(report.main, [""])
    assert "--compare has an empty value" in error_of(eval_script.main, ["--compare", "a.pt", ""])
    assert "--threshold has an empty value" in error_of(
        prepare.main, ["filter", "--threshold=", "a"]
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--batch_size=1", "--batch_size=2"),
        ("--batch_size", "1", "--batch_size=1"),
        ("--use_gpu", "--use_gpu=False"),
        ("--config=a.yaml", "--config=b.yaml"),
    ],
)
def test_a_flag_that_is_given_twice_is_refused(words, capsys, monkeypatch):
    monkeypatch.setattr(common_flags, "_refuse_repeated", REFUSE_REPEATED)
    for script in ("eval", "infer"):
        with pytest.raises(SystemExit) as stop:
            parse(script, *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "expected the flag once, found it twice" in error
    with pytest.raises(SystemExit):
        parse("pair", "--train_batch_size=8", "--batch_size=8")  # two names of one flag
    assert parse("infer", "--query_text=a", "--query_text=b").query_text == ["a", "b"]
    assert last_of_each(["a", "--x=1", "--y=2", "--x=3"]) == ["a", "--y=2", "--x=3"]


@pytest.mark.parametrize(
    ("script", "flag", "words"),
    [
        ("elem", "--learning_rate=1", "did you mean --lr?"),
        ("pair", "--weights=a.pt", "did you mean --pretrained_model?"),
        ("pair", "--num-epochs=3", "did you mean --num_epochs?"),
        ("eval", "--lr=1", "--lr: it belongs to the training scripts, leave it out;"),
        ("infer", "--horizontal_flip", "it belongs to the training scripts"),
        ("elem", "--ks=1", "it belongs to eval.py"),
    ],
)
def test_a_flag_of_others_is_answered_by_its_name_here(script, flag, words, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[script].main([flag])
    assert words in capsys.readouterr().err


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


def test_values_of_files_are_parsed_as_the_flags_themselves():
    flags = parse("eval", "--batch_size=3")
    found = {"image_shape": [3, 32, 32], "fold": None, "no_flag": 1, "use_gpu": False}
    adopted = flags.adopted("last.pt", {"embedding_size": 8}, found)
    assert (adopted.image_shape, adopted.embedding_size, adopted.use_gpu) == ((3, 32, 32), 8, False)
    assert "no_flag" not in adopted.values
    for name, value in (
        ("image_shape", [3, -1, 5]),
        ("embedding_size", "x"),
        ("dataset", "mine"),
        ("use_gpu", {}),
        ("seed", 1.5),
    ):
        with pytest.raises(ValueError, match=f"last.pt is damaged, its {name}: expected"):
            flags.adopted("last.pt", {name: value})


def test_a_layer_that_no_memory_holds_is_named(error_of):
    words = ["--pretrained_model=random", "--model=test_resnet", "--use_gpu=False"]
    for size in (10**9, 10**13):
        error = error_of(eval_script.main, [*words, f"--embedding_size={size}"])
        assert f"--embedding_size={size} needs" in error and "GB of memory" in error
    image = "--image_shape=3,9999999,9999999"
    assert "--image_shape" in error_of(eval_script.main, [*words, image])
