"""The recipes of configs/recipes: each trains on stand-in data, and says where it comes from."""

import json
import re
from pathlib import Path

import pytest
import yaml

import train_elem
import train_pair
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, V1_LOSSES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = {"sop": "sop", "cub": "cub200_2011", "cars": "cars196", "inshop": "inshop"}
IMAGES = {"sop": 59551, "cub": 5864, "cars": 8054, "inshop": 25882}  # to train on
RECIPES = [file for file in sorted((CONFIGS / "recipes").glob("*_*.yaml"))]
RECIPES = [file for file in RECIPES if file.stem.split("_")[0] in DATA]
LENGTH = ("num_epochs", "total_iter_num", "warmup_iter_num", "lr_steps", "warm_head_steps")
KEPT = ("pooling", "feature_norm", "embedding_size", "optimizer", "freeze_bn", "adam_eps")
KEPT += ("init_class_layer", "samples_each_class", "clip_grad_value", "train_crop", "sampler")


def flags_of(recipe):
    return yaml.load(recipe.read_text("utf-8"), Loader=yaml.BaseLoader)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory, toy_flags):
    """Run folder of a small ResNet, by the recipe of stage 1."""
    folder = tmp_path_factory.mktemp("weights")
    flags = [f"--config={CONFIGS / 'recipes' / 'stage1.yaml'}", *toy_flags, "--model=test_resnet"]
    flags += ["--train_batch_size=8", "--num_epochs=1", "--test_iter_step=0", "--freeze_bn=False"]
    return train_elem.main([*flags, "--horizontal_flip=False", f"--model_save_dir={folder}"])


@pytest.fixture(scope="module")
def network(stage_one):
    """Weights of a small ResNet, to start from as recipes do."""
    return stage_one / "last.safetensors"


@pytest.fixture(scope="module")
def toy_products(toy_tree, tmp_path_factory):
    """A folder with the lists of Stanford Online Products, of the toy tree: two super classes."""
    folder = tmp_path_factory.mktemp("products")
    for split in ("train", "test"):
        lines = ["image_id class_id super_class_id path"]
        for number, file in enumerate(sorted(toy_tree.glob(f"{split}/*/*.png")), 1):
            label = int(file.parent.name.removeprefix("class_"))
            lines.append(f"{number} {label + 1} {label % 2 + 1} {file}")
        (folder / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def stand_in(flags, network, toy_flags, toy_products):
    """The flags of a recipe on the toy tree: of a few small images, for six steps."""
    small = {name: value for name, value in flags.items() if name not in LENGTH}
    small |= dict(word.removeprefix("--").split("=", 1) for word in toy_flags)
    small |= {"model": "test_resnet", "image_shape": "3,32,32", "pretrained_model": str(network)}
    if "sampler" in flags:
        small |= {"dataset": "sop", "data_dir": str(toy_products)}
    if "resize_first" in flags:
        small["resize_first"] = ",".join("36" for _ in flags["resize_first"].split(","))
    if "warm_head_steps" in flags:
        small["warm_head_steps"] = "2"
    images = 2 * int(flags.get("samples_each_class", 4))
    small |= {"train_batch_size": str(images), "total_iter_num": "6", "test_iter_step": "0"}
    if "chunk_size" in flags:
        small["chunk_size"] = str(images // 2)
    return [f"--{name}={value}" for name, value in small.items() if name != "model_save_dir"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_trains_on_stand_in_data(recipe, network, toy_flags, toy_products, tmp_path):
    flags = flags_of(recipe)
    script = train_elem if flags["loss_name"] in ELEM_LOSSES else train_pair
    words = stand_in(flags, network, toy_flags, toy_products)
    folder = script.main([*words, f"--model_save_dir={tmp_path}", "--display_iter_step=1"])
    records = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 6 and all(loss < 1e4 for loss in losses)  # NaN is not below
    kept = json.loads((folder / "args.json").read_text())["flags"]
    for name in KEPT:
        if name in flags:
            text = str(kept[name]).lower()
            assert text.removesuffix(".0") == flags[name].removesuffix(".0"), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_the_steps_of_a_recipe_are_whole_epochs_of_its_data(recipe):
    flags = flags_of(recipe)
    images, batch = IMAGES[recipe.stem.split("_")[0]], int(flags["train_batch_size"])
    for name in {"lr_steps", "warm_head_steps"} & set(flags):
        for step in map(int, flags[name].split(",")):
            epochs = step * batch // images
            assert 1 <= epochs < int(flags["num_epochs"])
            assert step == -(-epochs * images // batch), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_says_where_it_comes_from(recipe):
    head = " ".join(line[2:] for line in recipe.read_text("utf-8").splitlines() if line[0] == "#")
    for words in ("Published: ", "GPU memory and hours: ", "Otherwise than there: "):
        assert words in head
    assert re.search(r"Recall@1 \d\d\.\d|no figure was found", head)
    flags = flags_of(recipe)
    assert flags["dataset"] == DATA[recipe.stem.split("_")[0]]
    assert flags["run_name"] == recipe.stem


def test_there_are_recipes_for_all_four_data_sets():
    methods = {name: set() for name in DATA}
    for file in RECIPES:
        data, _, method = file.stem.partition("_")
        methods[data].add(method)
    everywhere = {"fastretri", "dml_cross_entropy", "proxynca_pp", "proxy_anchor", "normsoftmax"}
    assert all(found >= everywhere | {"vits14_dinov2"} for found in methods.values())
    assert {name for name in DATA if "roadmap" in methods[name]} == {"sop", "cub", "inshop"}
    assert {name for name in DATA if "recall_at_k" in methods[name]} == {"sop", "cub", "cars"}


def test_the_boards_have_the_flags_of_the_recipes():
    board = yaml.load((CONFIGS / "boards" / "recipes.yaml").read_text(), Loader=yaml.BaseLoader)
    files = {file.stem: file for file in RECIPES if file.stem.startswith("sop_")}
    assert {f"sop_{name}" for name in board["rows"]} == set(files)
    for name, row in board["rows"].items():
        file = files[f"sop_{name}"]
        assert row["config"] == file.relative_to(CONFIGS.parent).as_posix()
        assert row["published"]["recall@1"] in file.read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in PAIR_LOSSES if name not in V1_LOSSES])
def test_each_pair_loss_has_a_recipe_that_goes_on_with_stage_one(
    name, stage_one, toy_flags, tmp_path
):
    recipe = CONFIGS / "recipes" / f"stage2_{name}.yaml"
    start = f"--pretrained_model={stage_one / 'last.pt'}"
    short = ["--model=test_resnet", "--train_batch_size=12", "--num_epochs=1"]
    short += ["--test_iter_step=0"]
    words = [f"--config={recipe}", *toy_flags, *short, start, f"--model_save_dir={tmp_path}"]
    folder = train_pair.main(words)
    flags = json.loads((folder / "args.json").read_text())["flags"]
    rate = pytest.approx(0.1 * 5.5e-5)
    assert (flags["loss_name"], flags["keep_loss"], flags["lr"]) == (name, 5, rate)
    assert (flags["optimizer"], flags["lr_head_mult"]) == ("adam", 100)
    assert flags["horizontal_flip"] is False  # as stage 1 had it
    assert recipe.name in recipe.read_text("utf-8")


def test_stage_one_begins_at_random_weights(toy_flags, tmp_path, capfd):
    recipes = CONFIGS / "recipes"
    length = ["--model=test_resnet", "--train_batch_size=8", "--total_iter_num=2"]
    flags = [*toy_flags, *length, "--test_iter_step=0", f"--model_save_dir={tmp_path}"]
    flags = [f for f in flags if not f.startswith("--transform")]
    folder = train_elem.main([f"--config={recipes / 'stage1_scratch.yaml'}", *flags])
    assert json.loads((folder / "args.json").read_text())["flags"]["lr"] == 0.003
    assert "of no data" not in "".join(capfd.readouterr())

    train_elem.main([f"--config={recipes / 'stage1.yaml'}", *flags])  # that of pretrained weights
    assert "stage1_scratch.yaml" in "".join(capfd.readouterr())
