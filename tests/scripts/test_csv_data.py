"""From a folder of images to a trained and evaluated model through CSV files."""

import json
import re
from pathlib import Path

import pytest

import eval as eval_script
import train_elem
import train_pair
from metric_learning.data.prepare import __main__ as prepare

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--model=ResNet18", "--image_shape=3,32,32", "--use_gpu=False", "--num_workers=0")
SHORT = ("--total_iter_num=2", "--test_iter_step=2", "--display_iter_step=1")


@pytest.fixture(scope="module")
def lists(toy_tree, tmp_path_factory):
    """Lists of six classes of four images: closed folds and open folds."""
    folder = tmp_path_factory.mktemp("lists")
    prepare.main(["scan", str(toy_tree / "train"), f"--output={folder / 'all.csv'}"])
    for name in ("closed", "open"):
        flags = ["--k=2", f"--open_set={name == 'open'}", f"--output={folder / name}.csv"]
        prepare.main(["folds", str(folder / "all.csv"), *flags])
    return folder


@pytest.mark.parametrize(
    ("kind", "script", "flags"),
    [
        ("closed", train_elem, ("--loss_name=arcmargin", "--train_batch_size=8")),
        ("open", train_elem, ("--loss_name=softmax", "--train_batch_size=8")),
        ("closed", train_pair, ("--loss_name=eml", "--train_batch_size=8")),
        ("open", train_pair, ("--loss_name=triplet", "--train_batch_size=9")),
    ],
)
def test_train_and_evaluate(kind, script, flags, lists, toy_tree, tmp_path):
    data = ("--dataset=csv", f"--csv={lists / kind}.csv", f"--data_dir={toy_tree / 'train'}")
    run = script.main([*data, "--fold=0", *SMALL, *SHORT, *flags, f"--model_save_dir={tmp_path}"])
    meta = json.loads((run / "args.json").read_text())["flags"]
    assert meta["fold"] == 0 and meta["class_dim"] == (6 if kind == "closed" else 3)
    # The checkpoint knows its list and fold; another fold can be tested.
    result = eval_script.main([f"--pretrained_model={run / 'last.pt'}", *SMALL[2:]])
    assert result["evaluated"]["images"] == 12 and result["evaluated"]["flags"]["fold"] == 0
    is_classified = kind == "closed" and script is train_elem
    assert ("acc1" in result) == is_classified
    other = eval_script.main([f"--pretrained_model={run / 'last.pt'}", "--fold=1", *SMALL[2:]])
    assert other["evaluated"]["images"] == 12 and other["evaluated"]["flags"]["fold"] == 1


def test_a_config_and_a_list_are_enough(lists, toy_tree, tmp_path):
    run = train_elem.main(
        [f"--config={ROOT / 'configs' / 'folder.yaml'}", f"--csv={lists / 'closed.csv'}", *SMALL]
        + [f"--data_dir={toy_tree / 'train'}", "--num_epochs=2", "--train_batch_size=6"]
        + [f"--model_save_dir={tmp_path}"]
    )
    epochs = re.findall(r"epoch: +(\d), .*test acc: [01]\.\d", (run / "log.txt").read_text())
    assert epochs == ["1", "2"]
    result = eval_script.main([f"--pretrained_model={run / 'last.pt'}", *SMALL[2:]])
    assert result["evaluated"]["images"] == 12 and "acc1" in result


def test_a_list_without_its_flags_is_one_line(error_of, lists, toy_tree):
    data = ["--dataset=csv", f"--data_dir={toy_tree / 'train'}", *SMALL]
    assert "needs --csv=FILE" in error_of(train_elem.main, data)
    closed = f"--csv={lists / 'closed.csv'}"
    assert "choose the fold" in error_of(train_elem.main, [*data, closed])
    assert "has folds 0, 1" in error_of(train_elem.main, [*data, closed, "--fold=2"])
    assert "--fold is for --dataset=csv" in error_of(
        train_pair.main, ["--dataset=folder", f"--data_dir={toy_tree}", *SMALL, "--fold=0"]
    )
