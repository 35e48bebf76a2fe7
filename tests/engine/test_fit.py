"""Training on a toy tree: resume to the bit, log lines, the run folder, faults."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.embed.embedding import embed_images
from metric_learning.engine.run.checkpoints import load_checkpoint, save_checkpoint
from metric_learning.engine.train import run
from metric_learning.engine.train.stages import elem_loss, pair_loss
from metric_learning.losses import build_loss
from metric_learning.losses.functional import classes_ahead

STAGES = {
    "elem": (train_elem, ["--loss_name=arcmargin", "--train_batch_size=8", "--lr=0.01"]),
    "pair": (train_pair, ["--loss_name=eml", "--train_batch_size=8", "--lr=0.001"]),
}
QUIET = ["--test_iter_step=0", "--save_iter_step=0", "--display_iter_step=1"]


def parts_equal(ours, theirs):
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            parts_equal(ours[key], theirs[key]) for key in ours
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(parts_equal, ours, theirs))
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "extra",
    [
        ["--ema_decay=0.9", "--clip_grad_norm=1", "--warmup_iter_num=2", "--chunk_size=4"],
        ["--embedding_size=16", "--lr_head_mult=10", "--optimizer=adamw"],
    ],
    ids=["ema", "head"],
)
def test_five_steps_and_five_more_equal_ten_to_the_bit(stage, extra, toy_flags, tmp_path):
    script, flags = STAGES[stage]
    flags = [*toy_flags, *flags, *QUIET, *extra, "--lr_steps=3,7", f"--model_save_dir={tmp_path}"]
    whole = script.main([*flags, "--total_iter_num=10", "--run_name=whole"])
    half = script.main([*flags, "--total_iter_num=5", "--run_name=half"])
    resumed = script.main(
        [f"--checkpoint={half / 'last.pt'}", f"--model_save_dir={tmp_path}"]
        + ["--total_iter_num=10", "--run_name=half", "--num_workers=1"]
        + [flag for flag in flags if flag.startswith("--loss_name")]
    )
    assert resumed == half
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in ("model", "live_model", "criterion", "optimizer", "step", "best", "tested"):
        assert parts_equal(ours[part], theirs[part]), part
    losses = {
        folder: {
            record["step"]: record["loss"]
            for record in map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
        }
        for folder in (whole, half)
    }
    assert losses[whole] == losses[half] and sorted(losses[whole]) == list(range(1, 11))


def test_the_number_of_workers_changes_nothing(toy_flags, tmp_path):
    script, flags = STAGES["pair"]
    flags = [*toy_flags, *flags, *QUIET, "--total_iter_num=3", f"--model_save_dir={tmp_path}"]
    states = [
        load_checkpoint(script.main([*flags, f"--num_workers={n}"]) / "last.pt")["model"]
        for n in (0, 2)
    ]
    assert parts_equal(*states)


def test_run_folder_tells_the_whole_story(toy_flags, tmp_path, capsys):
    script, flags = STAGES["elem"]
    folder = script.main(
        [*toy_flags, *flags, "--total_iter_num=4", "--display_iter_step=2"]
        + ["--test_iter_step=2", "--save_iter_step=1", "--keep=2", f"--model_save_dir={tmp_path}"]
    )
    assert folder == tmp_path / "ResNet18_arcmargin"
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("args.json", "log.txt", "stats.jsonl", "tensorboard"),
        *("last.pt", "last.safetensors", "best.pt", "best.safetensors"),
        *("train_images.npz", "test_images.npz", "test_scores.npz"),
        *("step_3.pt", "step_4.pt"),
    }
    lines = (folder / "log.txt").read_text()
    assert lines in capsys.readouterr().out
    stamp = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    for form in (
        r"trainbatch 2, lr 0\.010000, loss \d+\.\d{6}, acc1 0\.\d{4}, acc5 [01]\.\d{4}, "
        r"time \d+\.\d\d sec, wait \S+, step 2/4, eta \d+:\d\d:\d\d$",
        r"test_img_num 16, trainbatch 4, test_recall [01]\.\d{5}$",
        r"recall@1_chance 0\.20000, time \d+\.\d\d sec, step 4/4, eta 0:00:00$",
        r"warning: 4 test classes: .*",
    ):
        assert re.search(stamp + form, lines, re.MULTILINE), form
    records = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        *(("train", 2), ("test", 2)),
        *(("train", 4), ("test", 4)),
    ]
    assert json.loads((folder / "args.json").read_text())["flags"]["class_dim"] == 6
    state = load_checkpoint(folder / "last.pt")["model"]
    assert parts_equal(load_file(folder / "last.safetensors"), dict(state))
    best = load_checkpoint(folder / "best.pt")
    assert best["best"]["recall@1"] == max(r["recall@1"] for r in records if r["kind"] == "test")


def test_pair_line_has_the_batch_recall(toy_flags, tmp_path):
    script, flags = STAGES["pair"]
    folder = script.main(
        [*toy_flags, *flags, *QUIET, "--total_iter_num=1", f"--model_save_dir={tmp_path}"]
    )
    form = (
        r"trainbatch 1, lr 0\.001000, loss \d+\.\d{6}, recall [01]\.\d{4}, time \d+\.\d\d sec, "
        r"wait \S+, norm \S+, d2_pos \S+, d2_neg \S+, step 1/1, eta \d+:\d\d:\d\d$"
    )
    assert re.search(form, (folder / "log.txt").read_text(), re.MULTILINE)


def test_batch_recall_is_that_of_the_nearest_other_row():
    embeddings = torch.tensor([[1.0, 0], [2.0, 0.1], [0, 1], [0.1, -1]])
    criterion = build_loss("eml")
    figures = pair_loss(criterion, embeddings, torch.tensor([0, 0, 1, 1]))[1]
    assert figures["recall"].item() == 0.5
    distances = torch.cdist(embeddings, embeddings).square()
    assert figures["norm"].item() == pytest.approx(embeddings.norm(dim=1).mean().item())
    assert figures["d2_pos"].item() == pytest.approx((distances[0, 1] + distances[2, 3]).item() / 2)
    nearest = torch.cat([distances[:2, 2:].amin(1), distances[2:, :2].amin(1)]).mean()
    assert figures["d2_neg"].item() == pytest.approx(nearest.item(), rel=1e-5)


def test_accuracy_is_taken_from_the_margined_logits():
    criterion = build_loss("arcmargin", class_dim=3, embedding_size=2, arc_margin=1.0)
    criterion.weight.data.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0]]))
    embeddings = torch.tensor([[1.0, 0.9], [-1, 0.1]])
    figures = elem_loss(criterion, embeddings, torch.tensor([0, 2]))[1]
    assert figures["acc1"].item() == 0.5 and figures["acc5"].item() == 1.0


def test_ties_and_nan_count_against_an_image():
    scores = torch.tensor([[1.0, 3, 2], [1, 1, 1], [torch.nan, 0, 0], [0, torch.nan, 9]])
    assert classes_ahead(scores, torch.tensor([1, 0, 0, 2])).tolist() == [0, 2, 2, 1]


def test_a_second_run_never_overwrites_the_first(toy_flags, tmp_path, capsys):
    script, flags = STAGES["elem"]
    flags = [*toy_flags, *flags, *QUIET, "--total_iter_num=0", f"--model_save_dir={tmp_path}"]
    folders = [script.main(flags).name for _ in range(2)]
    assert folders == ["ResNet18_arcmargin", "ResNet18_arcmargin-2"]
    with pytest.raises(SystemExit):
        script.main([*flags, "--run_name=ResNet18_arcmargin"])
    assert "holds another run" in capsys.readouterr().err


def test_freeze_bn_keeps_the_statistics_and_trains_the_rest(toy_flags, tmp_path):
    script, flags = STAGES["pair"]
    flags = [*toy_flags, *flags, *QUIET, f"--model_save_dir={tmp_path}", "--freeze_bn=True"]
    before, after = (
        load_checkpoint(script.main([*flags, f"--total_iter_num={n}"]) / "last.pt")["model"]
        for n in (0, 2)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "backbone.bn1.weight" in changed and "backbone.conv1.weight" in changed
    assert not any("running" in name for name in changed)


def test_num_epochs_counts_images(toy_flags, tmp_path):
    script, flags = STAGES["elem"]
    folder = script.main(
        [*toy_flags, *flags, *QUIET, "--num_epochs=2", "--train_batch_size=9"]
        + [f"--model_save_dir={tmp_path}"]
    )
    assert load_checkpoint(folder / "last.pt")["step"] == int(np.ceil(2 * 24 / 9))


@pytest.mark.parametrize("display", [1, 100])
def test_a_diverged_run_stops_and_saves_nothing(toy_flags, tmp_path, capsys, display):
    script, flags = STAGES["elem"]
    with pytest.raises(SystemExit) as stop:
        script.main(
            [*toy_flags, *flags, "--lr=1e30", "--total_iter_num=9", f"--model_save_dir={tmp_path}"]
            + [f"--display_iter_step={display}", "--test_iter_step=0", "--save_iter_step=5"]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "the training diverged at step 2" in error
    assert not list(tmp_path.glob("**/*.pt"))
    [images] = tmp_path.glob("ResNet18_arcmargin/step_2_images.txt")
    assert str(images) in error and len(images.read_text().splitlines()) == 8


def test_collapsed_embeddings_are_warned_about(toy_flags, toy_tree, tmp_path):
    """Images that are all the same cannot be told apart."""
    tree = shutil.copytree(toy_tree, tmp_path / "tree")
    for path in tree.glob("train/*/*.png"):
        Image.new("RGB", (40, 32), "grey").save(path)
    script, flags = STAGES["pair"]
    flags = [*toy_flags, *flags, *QUIET, f"--data_dir={tree}", "--total_iter_num=1"]
    folder = script.main([*flags, f"--model_save_dir={tmp_path}"])
    assert "the embeddings have collapsed" in (folder / "log.txt").read_text()
    record = json.loads((folder / "stats.jsonl").read_text().splitlines()[0])
    assert record["spread"] < 1e-4


def resumed_run(script, flags, checkpoint, steps):
    loss = [flag for flag in flags if flag.startswith("--loss_name")]
    return script.main([*loss, f"--checkpoint={checkpoint}", f"--total_iter_num={steps}"])


def test_resume_takes_new_flags_and_tells_both_calls(toy_flags, tmp_path):
    script, flags = STAGES["elem"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("pretrained_model: gone.pt\nlr_head_mult: 7\n")
    folder = script.main(
        [*toy_flags, *flags, *QUIET, "--total_iter_num=1", f"--model_save_dir={tmp_path}"]
    )
    last = folder / "last.pt"
    again = script.main(
        [f"--config={recipe}", "--loss_name=arcmargin", f"--checkpoint={last}"]
        + ["--total_iter_num=2"]
    )
    assert again == folder
    groups = load_checkpoint(last)["optimizer"]["param_groups"]
    assert [group["lr_mult"] for group in groups] == [1.0, 7.0]
    described = json.loads((folder / "args.json").read_text())
    assert described["flags"]["total_iter_num"] == 1
    assert [call["flags"]["total_iter_num"] for call in described["resumed"]] == [2]


def test_test_classes_are_kept_for_eval_where_the_training_tests_nothing(toy_flags, tmp_path):
    script, flags = STAGES["elem"]
    folder = script.main(
        [*toy_flags, *flags, *QUIET, "--total_iter_num=1", "--test_classes=1-2"]
        + [f"--model_save_dir={tmp_path}"]
    )
    result = eval_script.main([f"--pretrained_model={folder / 'last.pt'}", "--num_workers=0"])
    assert result["queries"] == 8


def test_tests_compute_in_float32_whatever_the_steps_do(toy_flags, tmp_path, monkeypatch):
    types = []

    def embed(*args, **options):
        types.append(args[3].amp_dtype)
        return embed_images(*args, **options)

    monkeypatch.setattr(run, "embed_images", embed)
    flags = [*toy_flags, *STAGES["elem"][1], f"--model_save_dir={tmp_path}", "--amp=bfloat16"]
    train_elem.main([*flags, "--total_iter_num=1", "--test_iter_step=1", "--save_iter_step=0"])
    assert types == [None]


def test_a_best_checkpoint_survives_a_resume_from_before_it(toy_flags, tmp_path):
    script, flags = STAGES["elem"]
    folder = script.main(
        [*toy_flags, *flags, "--total_iter_num=2", "--save_iter_step=1", "--test_iter_step=1"]
        + [f"--model_save_dir={tmp_path}"]
    )
    best = load_checkpoint(folder / "best.pt")
    best["best"] = {"recall@1": 1.0, "step": 2}
    save_checkpoint(folder / "best.pt", best)
    resumed_run(script, flags, folder / "step_1.pt", 3)
    assert load_checkpoint(folder / "best.pt")["best"]["recall@1"] == 1.0
    assert load_checkpoint(folder / "last.pt")["best"] == {"recall@1": 1.0, "step": 2}
