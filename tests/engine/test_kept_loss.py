"""--keep_loss: stage 2 goes on with stage 1's own loss and class weights."""

import json
import shutil

import pytest
import torch
from building import build_run

import train_elem
import train_pair
from metric_learning.engine.embed.class_layer import take_class_weights
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.options.evaluation import default_flags, settle_embedding
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.checkpoints import load_checkpoint, save_checkpoint
from metric_learning.losses import build_loss

SHORT = [
    *("--model=test_resnet", "--train_batch_size=8", "--lr=0.01", "--embedding_size=12"),
    *("--display_iter_step=1", "--test_iter_step=0", "--save_iter_step=0"),
]
EMBEDDINGS = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) // 2


@pytest.fixture(scope="module")
def stage_one(toy_flags, tmp_path_factory):
    """Train stage 1 with a loss for two steps; its last.pt by name."""
    made = {}

    def train(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            flags = [f"--loss_name={name}", f"--model_save_dir={folder}", "--total_iter_num=2"]
            made[name] = train_elem.main([*toy_flags, *SHORT, *flags]) / "last.pt"
        return made[name]

    return train


@pytest.fixture
def train(toy_flags, tmp_path):
    """Train stage 2 for some steps; its run folder."""

    def run(*flags, steps=1):
        more = [f"--model_save_dir={tmp_path}", f"--total_iter_num={steps}"]
        return train_pair.main([*toy_flags, *SHORT, *more, *map(str, flags)])

    return run


def records(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", ["arcmargin", "softmax", "adaface", "soft_triple"])
def test_the_loss_is_the_pair_loss_plus_that_of_stage_one(name, stage_one, toy_flags):
    start = stage_one(name)
    flags = ["--loss_name=supcon", f"--pretrained_model={start}", "--keep_loss=0.3"]
    run = build_run(train_pair, [*toy_flags, *SHORT, *flags])
    loss, (pair, of_classes, logits) = run.learner.criterion(EMBEDDINGS, LABELS)

    kept = load_checkpoint(start)
    alone = build_loss(name, **kept["meta"]["loss_options"])
    alone.load_state_dict(kept["criterion"])
    expected, expected_logits = alone(EMBEDDINGS, LABELS)
    assert torch.equal(of_classes, expected) and torch.equal(logits, expected_logits)
    assert torch.equal(pair, build_loss("supcon")(EMBEDDINGS, LABELS))
    torch.testing.assert_close(loss, pair + 0.3 * of_classes)


def test_only_the_pair_loss_sees_embeddings_of_one_length(stage_one, toy_flags):
    flags = ["--loss_name=eml", f"--pretrained_model={stage_one('softmax')}", "--keep_loss=1"]
    scaled = ["--normalize_embeddings=True", "--embedding_scale=3"]
    plain, other = (
        build_run(train_pair, [*toy_flags, *SHORT, *flags, *more]).learner.criterion
        for more in ([], scaled)
    )
    _, (raw, of_classes, _) = plain(EMBEDDINGS, LABELS)
    _, (unit, again, _) = other(EMBEDDINGS, LABELS)
    assert torch.equal(of_classes, again) and not torch.equal(raw, unit)
    rows = 3 * torch.nn.functional.normalize(EMBEDDINGS)
    torch.testing.assert_close(unit, build_loss("eml", samples_each_class=2)(rows, LABELS))


def test_the_class_weights_train_at_the_rate_of_the_loss(stage_one, train):
    start = stage_one("arcmargin")
    kept = load_checkpoint(start)["criterion"]["weight"]
    flags = ["--loss_name=supcon", f"--pretrained_model={start}", "--keep_loss=1"]
    for mult, moves in (("0", False), ("5", True)):
        folder = train(*flags, f"--lr_loss_mult={mult}", f"--run_name=times_{mult}")
        found = load_checkpoint(folder / "last.pt")["criterion"]["class_layer.weight"]
        assert torch.equal(found, kept) is not moves
    assert "--keep_loss=1: arcmargin goes on with its class weights" in (
        folder / "log.txt"
    ).read_text(encoding="utf-8")
    first = records(folder)[0]
    assert first["loss"] == pytest.approx(first["loss_metric"] + first["loss_cls"], rel=1e-5)


@pytest.mark.parametrize(
    "more", [["--chunk_size=4"], ["--accumulation_steps=2", "--xbm_size=20"]], ids=["chunks", "xbm"]
)
def test_a_resume_is_bit_for_bit_and_needs_no_start(more, stage_one, train, tmp_path):
    start = tmp_path / "start.pt"
    shutil.copy(stage_one("adaface"), start)  # whose loss has running statistics
    flags = ["--loss_name=circle", f"--pretrained_model={start}", "--keep_loss=0.5", *more]
    whole = train(*flags, "--run_name=whole", steps=4)
    half = train(*flags, "--run_name=half", steps=2)
    start.unlink()
    train(*flags, "--run_name=half", f"--checkpoint={half / 'last.pt'}", steps=4)
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    assert same(ours["model"], theirs["model"]) and same(ours["criterion"], theirs["criterion"])
    assert [r["loss"] for r in records(half)] == [r["loss"] for r in records(whole)]


@pytest.mark.parametrize("given", ["--keep_loss=1", "--alpha=1"])
def test_a_stage_two_with_class_weights_is_the_start_of_another(given, stage_one, train):
    first = train("--loss_name=eml", f"--pretrained_model={stage_one('softmax')}", given)
    folder = train(
        *("--loss_name=supcon", f"--pretrained_model={first / 'last.pt'}", "--keep_loss=2"),
        *("--lr=0", "--run_name=second"),
    )
    before, after = (load_checkpoint(each / "last.pt") for each in (first, folder))
    names = ("class_layer.weight", "class_layer.bias")
    assert all(torch.equal(before["criterion"][n], after["criterion"][n]) for n in names)
    assert after["meta"]["kept_loss"]["loss"] == "softmax"


def test_a_checkpoint_knows_the_class_layer_that_it_keeps(stage_one, train):
    start = stage_one("arcmargin")
    folder = train("--loss_name=eml", f"--pretrained_model={start}", "--keep_loss=1")
    path = str(folder / "last.pt")
    flags = default_flags(pretrained_model=path, batch_size=1, num_workers=0)
    layer = Embedder.of(settle_embedding(flags, World(), is_quiet=True)).class_layer
    checkpoint = load_checkpoint(path)
    assert torch.equal(layer.weight, checkpoint["criterion"]["class_layer.weight"])
    assert layer.scale == load_checkpoint(start)["meta"]["loss_options"]["arc_scale"]


def test_class_weights_of_other_embeddings_are_refused(stage_one):
    layer = build_loss("arcmargin", class_dim=6, embedding_size=7)
    with pytest.raises(ValueError, match=r"are \(6, 12\), the embeddings take \(6, 7\)"):
        take_class_weights(layer, str(stage_one("arcmargin")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_loss=1"], "--keep_loss goes on with the loss of --pretrained_model"),
        (["--keep_loss=-1", "--pretrained_model=START"], "expected a number of at least 0"),
        (["--keep_loss=1", "--pretrained_model=random"], "weights file not found"),
        (["--keep_loss=1", "--pretrained_model=BARE"], "last.safetensors has no class weights"),
        (["--keep_loss=1", "--pretrained_model=PAIRS"], "last.pt has no class weights"),
        (["--keep_loss=1", "--alpha=1", "--pretrained_model=START"], "found both"),
        (
            ["--keep_loss=1", "--class_dropout=0.1", "--pretrained_model=START"],
            "--class_dropout is not used",
        ),
        (
            ["--keep_loss=1", "--pretrained_model=START", "--embedding_size=6"],
            "holds an embedding layer of size 12",
        ),
        (
            ["--keep_loss=1", "--pretrained_model=START", "--train_classes=1-5"],
            "was trained on other classes (6 training classes, not 5)",
        ),
        (
            ["--keep_loss=1", "--pretrained_model=RENAMED"],
            "was trained on other classes (other training classes, the first another, not class_0)",
        ),
    ],
)
def test_what_cannot_be_kept_is_one_line(flags, message, stage_one, train, tmp_path, error_of):
    start = stage_one("arcmargin")
    places = {"START": start, "BARE": start.with_suffix(".safetensors")}
    if any("RENAMED" in flag for flag in flags):
        checkpoint = load_checkpoint(start)
        checkpoint["meta"]["class_names"][0] = "another"
        places["RENAMED"] = tmp_path / "renamed.pt"
        save_checkpoint(places["RENAMED"], checkpoint)
    if any("PAIRS" in flag for flag in flags):
        places["PAIRS"] = train("--loss_name=eml", "--run_name=pairs") / "last.pt"
    words = []
    for flag in flags:
        name, _, value = flag.partition("=")
        words.append(f"{name}={places.get(value, value)}")
    assert message in error_of(lambda given: train(*given), ["--loss_name=eml", *words])


def test_a_kept_loss_sees_images_as_stage_one_did(toy_flags, tmp_path, train, capsys):
    looks = ["--horizontal_flip=False", "--min_crop_area=0.5", "--color_jitter=0.1,0,0,0"]
    flags = ["--loss_name=softmax", f"--model_save_dir={tmp_path / 'one'}", "--total_iter_num=1"]
    start = train_elem.main([*toy_flags, *SHORT, *flags, *looks]) / "last.pt"
    stage_two = [f"--pretrained_model={start}", "--loss_name=supcon"]
    capsys.readouterr()

    def flags_of(folder):
        kept = json.loads((folder / "args.json").read_text())["flags"]
        return kept["horizontal_flip"], kept["min_crop_area"], kept["color_jitter"]

    goes_on = train(*stage_two, "--keep_loss=1", "--min_crop_area=0.3")
    assert flags_of(goes_on) == (False, 0.3, [0.1, 0.0, 0.0, 0.0])
    line = "--horizontal_flip=False, --color_jitter=0.1,0.0,0.0,0.0"
    assert line in capsys.readouterr().out
    resumed = train("--checkpoint=auto", *stage_two, "--keep_loss=1", "--min_crop_area=0.3")
    assert flags_of(resumed) == flags_of(goes_on)
    assert flags_of(train(*stage_two, "--run_name=other")) == (True, 0.08, [])


def test_a_second_stage_that_forgets_the_first_names_its_recipe(stage_one, train, capsys):
    stage_two = [f"--pretrained_model={stage_one('softmax')}", "--loss_name=supcon"]
    line = "softmax, is not kept here; settings that keep it: --config=configs/recipes/stage2_sup"
    train(*stage_two)
    assert line in capsys.readouterr().out
    for flag in ("--keep_loss=1", "--alpha=1"):
        train(*stage_two, flag)
        assert line not in capsys.readouterr().out
    train("--loss_name=supcon")
    assert line not in capsys.readouterr().out
