"""--teacher: a frozen network whose similarities a training learns."""

import json
import shutil

import pytest
import torch
from building import build_run
from test_fit import parts_equal
from test_step import batches_of, inputs_of, step_of

import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.run.identity import recipe_of
from metric_learning.losses.similaritydistillation import SimilarityDistillation
from metric_learning.models import build_model, load_weights, read_metadata

SHORT = [
    *("--model=test_resnet", "--train_batch_size=12", "--lr=0.01", "--display_iter_step=1"),
    *("--test_iter_step=0", "--save_iter_step=0"),
]


@pytest.fixture(scope="module")
def teacher(toy_flags, tmp_path_factory):
    """The last.pt of a stage 1 of another network."""
    folder = tmp_path_factory.mktemp("teacher")
    flags = [*toy_flags, *SHORT, "--model=test_vit", "--embedding_size=24", "--lr=0.1"]
    return train_elem.main([*flags, f"--model_save_dir={folder}", "--total_iter_num=2"]) / "last.pt"


@pytest.fixture
def train(toy_flags, tmp_path):
    """Train stage 2 for some steps; its run folder."""

    def run(*flags, steps=2):
        more = [f"--model_save_dir={tmp_path}", f"--total_iter_num={steps}", "--loss_name=supcon"]
        return train_pair.main([*toy_flags, *SHORT, *more, *map(str, flags)])

    return run


@pytest.fixture
def built(toy_flags):
    def build(*flags, script=train_pair):
        loss = "--loss_name=supcon" if script is train_pair else "--loss_name=softmax"
        flags = [*toy_flags, *SHORT, loss, "--total_iter_num=9", *map(str, flags)]
        return build_run(script, flags)

    return build


def first_step(run):
    [batch] = [*batches_of(run, 1)]
    run.learner.model.train()
    outcome = step_of(run)(batch, 0)
    return {name: float(value) for name, value in outcome.figures.items()}, batch


@pytest.mark.parametrize("script", [train_pair, train_elem])
def test_a_step_pays_for_other_similarities_than_the_teacher_s(script, teacher, built):
    plain = built(script=script)
    taught = built(f"--teacher={teacher}", "--distill_weight=3", script=script)
    figures, batch = first_step(taught)
    without, _ = first_step(plain)

    network = build_model("test_vit", 24, image_size=32)
    load_weights(network, teacher)
    mean, std = taught.learner.model.mean, taught.learner.model.std
    network.mean, network.std = read_metadata(teacher)["mean"], read_metadata(teacher)["std"]
    inputs, _ = inputs_of(taught, batch)
    pixels = inputs * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    pixels -= torch.tensor(network.mean)[:, None, None]
    with torch.no_grad():
        targets = network.eval()(pixels / torch.tensor(network.std)[:, None, None])
        student = built(script=script).learner.model.train()(inputs)
    expected = float(SimilarityDistillation(0.1)(student, targets))
    assert figures["loss_distill"] == pytest.approx(expected, rel=1e-3)
    assert figures["loss"] == pytest.approx(without["loss"] + 3 * expected, rel=1e-3)
    states = [run.learner.model.state_dict() for run in (plain, taught)]
    assert not parts_equal(*states)


def test_the_teacher_stays_as_it_is(teacher, built):
    run = built(f"--teacher={teacher}")
    before = {n: v.clone() for n, v in run.learner.teacher.model.state_dict().items()}
    first_step(run)
    assert parts_equal(before, dict(run.learner.teacher.model.state_dict()))
    assert not any(p.requires_grad for p in run.learner.teacher.model.parameters())
    in_optimizer = [p for group in run.learner.optimizer.param_groups for p in group["params"]]
    assert len(in_optimizer) == len([*run.learner.model.parameters()])


def test_chunks_of_a_batch_learn_from_the_whole(teacher, built):
    flags = [f"--teacher={teacher}", "--freeze_bn=True"]
    whole, chunked = built(*flags), built(*flags, "--chunk_size=4")
    found = []
    for run in (whole, chunked):
        [batch] = [*batches_of(run, 1)]
        run.learner.model.eval()
        found.append(step_of(run)(batch, 0).figures["loss_distill"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(
        whole.learner.model.parameters(), chunked.learner.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_run_resumes_to_the_bit_and_knows_its_teacher(teacher, train, tmp_path, error_of):
    moved = tmp_path / "moved.pt"
    shutil.copy(teacher, moved)
    whole = train(f"--teacher={teacher}", "--run_name=whole", "--accumulation_steps=2", steps=4)
    half = train(f"--teacher={teacher}", "--run_name=half", "--accumulation_steps=2")
    resume = [f"--checkpoint={half / 'last.pt'}", "--run_name=half"]
    train(*resume, f"--teacher={moved}", steps=4)
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    assert parts_equal(ours["model"], theirs["model"])
    records = [json.loads(line) for line in (half / "stats.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss_distill" in r] == [1, 2, 3, 4]
    assert ", loss_distill " in (half / "log.txt").read_text(encoding="utf-8")

    assert recipe_of(ours["meta"])["teacher"] == ours["meta"]["teacher"]
    other = [*resume, f"--teacher={half / 'last.pt'}"]
    assert "with a --teacher of other weights" in error_of(lambda w: train(*w, steps=5), other)
    plain = train("--run_name=plain")
    joined = [f"--checkpoint={plain / 'last.pt'}", f"--teacher={teacher}"]
    assert "was trained without a --teacher" in error_of(lambda w: train(*w, steps=5), joined)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distill_weight=2"], "--distill_weight is not used (without --teacher)"),
        (["--teacher=TEACHER", "--distill_weight=0"], "expected --distill_weight and"),
        (["--teacher=TEACHER", "--image_shape=3,64,64"], "takes images of 32 px, this training"),
        (["--teacher=none.pt"], "weights file not found: none.pt"),
        (["--teacher=BARE"], "does not say of which model it holds the weights"),
        (
            ["--teacher=TEACHER", "--trainable=head", "--pretrained_model=TEACHER"],
            "--teacher is not used (--trainable=head",
        ),
    ],
)
def test_a_teacher_without_use_is_one_line(flags, message, teacher, train, tmp_path, error_of):
    bare = tmp_path / "bare.pth"
    torch.save(build_model("test_resnet").state_dict(), bare)
    words = [flag.replace("TEACHER", str(teacher)).replace("BARE", str(bare)) for flag in flags]
    assert message in error_of(lambda given: train(*given), words)
