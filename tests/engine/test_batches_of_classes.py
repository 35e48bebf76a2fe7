"""--samples_each_class of stage 1, --sampler and --hard_classes of stage 2, in trainings."""

import numpy as np
import pytest
import torch

import train_elem
import train_pair
from metric_learning.data.make_demo import make_demo
from metric_learning.engine.embed.class_layer import find_nearest_classes
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.reader.batches.related_classes import NEAREST
from metric_learning.reader.batches.samplers import SeededSampler

BASE = ["--model=test_resnet", "--use_gpu=False", "--num_workers=0", "--test_iter_step=0"]
BASE += ["--image_shape=3,32,32", "--save_iter_step=0"]
STAGE_2 = ["--loss_name=supcon", "--samples_each_class=2", "--train_batch_size=12"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Flags of a demo of 5 kinds, 12 training classes of 2 images each."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    make_demo(folder, num_classes=24, views=2, size=32)
    return [*BASE, "--dataset=demo", f"--data_dir={folder}"]


@pytest.fixture(scope="module")
def stage_1(demo, tmp_path_factory):
    """The checkpoint of an arcmargin training of class-balanced batches."""
    flags = ["--loss_name=arcmargin", "--samples_each_class=2", "--train_batch_size=12"]
    folder = tmp_path_factory.mktemp("stage_1")
    path = train_elem.main([*demo, *flags, f"--model_save_dir={folder}", "--total_iter_num=3"])
    return path / "last.pt"


@pytest.fixture
def drawn(monkeypatch):
    """The labels of all batches that a training asks its sampler for."""
    batches = []
    original = SeededSampler.__init__

    def note_batches(self, labels, *args):
        original(self, labels, *args)
        draw = self.batch

        def batch(step):
            indices = draw(step)
            batches.append(np.asarray(labels)[indices].tolist())
            return indices

        self.batch = batch

    monkeypatch.setattr(SeededSampler, "__init__", note_batches)
    return batches


def weights_of(folder):
    return load_checkpoint(folder / "last.pt")["model"]


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_stage_1_takes_balanced_batches(demo, tmp_path, drawn):
    flags = [*demo, f"--model_save_dir={tmp_path}", "--train_batch_size=12", "--total_iter_num=4"]
    whole = train_elem.main([*flags, "--samples_each_class=2"])
    assert all(batch[::2] == batch[1::2] and len(set(batch)) == 6 for batch in drawn)
    drawn.clear()
    plain = train_elem.main(flags)
    assert any(batch[::2] != batch[1::2] for batch in drawn)
    assert not equal(weights_of(whole), weights_of(plain))


def nearest_by_loops(file, count):
    weights = load_checkpoint(file)["criterion"]["weight"].double()
    weights = weights / weights.norm(dim=1, keepdim=True)
    rows = []
    for own, row in enumerate((weights @ weights.T).tolist()):
        others = [number for number in range(len(row)) if number != own]
        rows.append(sorted(others, key=lambda number, row=row: -row[number])[:count])
    return rows


def test_the_nearest_classes_are_those_of_the_class_weights(stage_1):
    names = load_checkpoint(stage_1)["meta"]["class_names"]
    found = find_nearest_classes(str(stage_1), names, 5)
    assert found.dtype == np.int32 and found.tolist() == nearest_by_loops(stage_1, 5)
    others = find_nearest_classes(str(stage_1), names[::-1], 11)[::-1]
    assert (11 - others).tolist() == nearest_by_loops(stage_1, 11)
    with pytest.raises(ValueError, match="trained without class new .1 of 13"):
        find_nearest_classes(str(stage_1), [*names, "new"], 5)


def test_hard_batches_are_drawn_again_on_resume(demo, stage_1, tmp_path, drawn):
    flags = [*demo, *STAGE_2, f"--model_save_dir={tmp_path}", "--hard_classes=2"]
    flags += [f"--pretrained_model={stage_1}"]
    whole = train_pair.main([*flags, "--total_iter_num=4"])
    nearest = nearest_by_loops(stage_1, 11)
    for batch in drawn:
        (first, *near), (second, *_) = np.reshape(batch[::2], (2, 3)).tolist()
        assert near == nearest[first][:2] and second not in (first, *near)
    assert np.load(whole / NEAREST).tolist() == [row[:5] for row in nearest]

    copied = tmp_path / "stage_1.pt"
    copied.write_bytes(stage_1.read_bytes())
    flags[-1] = f"--pretrained_model={copied}"
    half = train_pair.main([*flags, "--total_iter_num=2", "--run_name=half"])
    copied.unlink()  # a resume does not need it any more
    last = f"--checkpoint={half / 'last.pt'}"
    resumed = train_pair.main([*demo, f"--model_save_dir={tmp_path}", last, "--total_iter_num=4"])
    assert equal(weights_of(whole), weights_of(resumed))


def test_hierarchical_batches_are_of_two_kinds(demo, tmp_path, drawn):
    flags = [*demo, *STAGE_2, f"--model_save_dir={tmp_path}", "--total_iter_num=3"]
    flags[flags.index("--train_batch_size=12")] = "--train_batch_size=8"
    train_pair.main([*flags, "--sampler=hierarchical"])
    kinds = demo_kinds(demo)
    assert len(drawn) == 3
    assert all(len({kinds[label] for label in batch}) == 2 for batch in drawn)


def demo_kinds(demo):
    """The super class of each training class of the demo."""
    file = next(flag.partition("=")[2] for flag in demo if flag.startswith("--data_dir"))
    with open(f"{file}/Ebay_train.txt") as opened:
        rows = [line.split() for line in opened.read().splitlines()[1:]]
    return {int(row[1]) - 1: row[2] for row in rows}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hard_classes=2"], "--hard_classes=2 needs class weights"),
        (["--hard_classes=2", "--pretrained_model=random"], "random has no class weights"),
        (["--hard_classes=2", "--sampler=hierarchical"], "found both"),
        (["--loss_name=triplet", "--sampler=hierarchical"], "the loss takes triples of images"),
        (["--loss_name=siamese", "--hard_classes=1"], "the loss takes pairs of images"),
        (["--hard_classes=3"], "needs class weights"),
        (["--sampler=all"], "invalid choice"),
    ],
)
def test_what_cannot_be_drawn_is_refused(demo, flags, message, error_of, tmp_path):
    argv = [*demo, f"--model_save_dir={tmp_path}", "--total_iter_num=1"]
    own = [] if any(flag.startswith("--loss_name") for flag in flags) else STAGE_2
    assert message in error_of(train_pair.main, [*argv, *own, *flags])


def test_weights_without_classes_are_refused(demo, stage_1, toy_flags, error_of, tmp_path):
    plain = stage_1.with_name("last.safetensors")
    flags = [*STAGE_2, "--hard_classes=2", f"--model_save_dir={tmp_path}"]
    error = error_of(train_pair.main, [*demo, *flags, f"--pretrained_model={plain}"])
    assert "has no class weights" in error
    toy = [*toy_flags, *BASE, *flags, f"--pretrained_model={stage_1}"]
    assert "was trained without class class_0 (6 of 6)" in error_of(train_pair.main, toy)
    hierarchical = [*toy_flags, *BASE, *STAGE_2, "--sampler=hierarchical"]
    assert "needs super classes, which folder has not" in error_of(train_pair.main, hierarchical)
