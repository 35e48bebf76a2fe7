"""Rates by layer, a head that is warmed up alone, plateaus, early ends, clipping by value."""

import json

import pytest
import torch
from building import build_run
from test_fit import parts_equal
from test_step import batches_of, step_of
from timm.optim import param_groups_layer_decay
from torch.optim.lr_scheduler import ReduceLROnPlateau

import train_elem
import train_pair
from metric_learning.engine.options.parts import ScheduleOptions
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.run.course import Course
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.train import rate_at, set_rate, set_train_mode
from metric_learning.losses import build_loss
from metric_learning.models import build_model

RECALLS = [0.3, 0.5, 0.4, 0.5, 0.45, 0.2, 0.6, 0.6, 0.6, 0.6, 0.1, 0.1, 0.1]


@pytest.fixture
def built(toy_flags):
    """Build a training of stage 1, or of stage 2 with one of its losses."""

    def build(*flags, script=train_elem):
        more = ["--model=test_resnet", "--train_batch_size=12", "--total_iter_num=9"]
        return build_run(script, [*toy_flags, *more, "--test_iter_step=0", *flags])

    return build


@pytest.fixture
def train(toy_flags, tmp_path):
    """Train stage 1 with a test of validation classes after every step; the run folder."""

    def run(*flags, steps=6):
        more = ["--model=test_resnet", "--train_batch_size=8", "--val_fold=0/3", "--lr=0.02"]
        more += ["--test_iter_step=1", "--display_iter_step=1", f"--model_save_dir={tmp_path}"]
        return train_elem.main([*toy_flags, *more, f"--total_iter_num={steps}", *flags])

    return run


def scales_of(optimizer):
    return {id(p): group["lr_mult"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("pooling", ["own", "gem"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet18", "mobilenetv2_100"])
def test_layers_have_the_rates_that_timm_gives_them(name, pooling, built):
    if name == "test_vit" and pooling == "gem":
        pytest.skip("a transformer has no feature map to pool")
    flags = ["--layer_decay=0.7", "--lr_head_mult=5"]
    options = built(*flags, "--embedding_size=8").options.optimizer
    model = build_model(name, 8, pooling=pooling)
    criterion = build_loss("softmax", class_dim=3, embedding_size=8)
    optimizer = build_optimizer(model, model.head, criterion, options)
    found = scales_of(optimizer)
    assert len(found) == len([*model.parameters(), *criterion.parameters()])

    alone = build_model(name).backbone  # without a pooling that timm does not know of
    groups = param_groups_layer_decay(alone, layer_decay=0.7)
    of_timm = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    ours = dict(model.backbone.named_parameters())
    for parameter_name, parameter in alone.named_parameters():
        assert found[id(ours[parameter_name])] == pytest.approx(of_timm[id(parameter)])
    assert len({round(scale, 9) for scale in of_timm.values()}) > 3
    assert all(found[id(p)] == 5 for p in [*model.head.parameters(), *criterion.parameters()])
    set_rate(optimizer, 1e-6)
    assert min(group["lr"] for group in optimizer.param_groups) < 1e-6


def test_the_backbone_rests_while_the_head_warms_up(built):
    run = built("--warm_head_steps=2", "--embedding_size=8", "--optimizer=adam", "--lr=0.01")
    model, step = run.learner.model, step_of(run)
    set_train_mode(model, freeze_bn=False)
    trunk = [p.detach().clone() for p in model.backbone.parameters()]
    head, mean = model.embedding.weight.detach().clone(), model.backbone.bn1.running_mean.clone()

    for number, batch in enumerate(batches_of(run, 3)):
        set_rate(run.learner.optimizer, 0.01)
        step(batch, number)
        is_same = [
            torch.equal(a, b) for a, b in zip(model.backbone.parameters(), trunk, strict=True)
        ]
        assert all(is_same) if number < 2 else sum(is_same) < len(is_same) / 2
        assert not torch.equal(model.embedding.weight, head)
    assert not torch.equal(model.backbone.bn1.running_mean, mean)  # as in ProxyNCA++

    states = run.learner.optimizer.state
    counts = {int(states[p]["step"]) for p in model.backbone.parameters()}
    assert counts == {1} and int(states[model.embedding.weight]["step"]) == 3


def test_a_gradient_is_clipped_value_by_value(built):
    plain, clipped = built(), built("--clip_grad_value=0.001")
    gradients = []
    for run in (plain, clipped):
        set_train_mode(run.learner.model, freeze_bn=False)
        step_of(run)(batches_of(run, 1).__iter__().__next__(), 0)
        gradients.append([p.grad for p in run.learner.model.parameters()])
    assert max(gradient.abs().max() for gradient in gradients[0]) > 0.01
    for whole, limited in zip(*gradients, strict=True):
        assert torch.equal(whole.clamp(-0.001, 0.001), limited)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_eps_is_that_of_the_optimizer(name, built):
    given = built(f"--optimizer={name}", "--adam_eps=1.0").learner.optimizer
    assert given.defaults["eps"] == 1.0
    assert built(f"--optimizer={name}").learner.optimizer.defaults["eps"] == 1e-8


def test_drop_path_reaches_the_network(built):
    for given, drops in ([], 0), (["--drop_path=0.3"], 1):
        backbone = built(*given).learner.model.backbone
        found = {float(getattr(module, "drop_prob", 0) or 0) for module in backbone.modules()}
        assert (max(found) == pytest.approx(0.3)) is bool(drops)


def schedule(**values):
    defaults = {"lr": 0.1, "lr_strategy": "reduce_on_plateau", "lr_steps": ()}
    return ScheduleOptions(
        **defaults | {"warmup_iter_num": 0, "total_iter_num": 99, "epoch_size": 9} | values
    )


@pytest.mark.parametrize("resumed_at", [None, 0, 3, 7])
def test_the_rate_of_a_plateau_is_torch_s(resumed_at):
    options = schedule(plateau_patience=1, plateau_factor=0.3)
    course = Course(options)
    holder = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    expected = ReduceLROnPlateau(holder, mode="max", factor=0.3, patience=1)
    rates = set()
    for number, recall in enumerate(RECALLS):
        if number == resumed_at:
            state = json.loads(json.dumps(course.state()))
            course = Course(options)
            course.restore(state)
        expected.step(recall)
        said = course.note(recall)
        assert rate_at(options, number, course.rate) == holder.param_groups[0]["lr"]
        assert bool(said) is (course.rate not in rates and len(rates) > 0)
        rates.add(course.rate)
    assert len(rates) >= 4


def test_a_plateau_warms_up_too_and_takes_another_rate():
    options = schedule(plateau_patience=0, warmup_iter_num=3)
    course = Course(options)
    for recall in (0.5, 0.5):
        course.note(recall)
    assert [rate_at(options, step, course.rate) for step in range(5)] == pytest.approx(
        [0.0025, 0.005, 0.0075, 0.01, 0.01]
    )
    other = Course(schedule(plateau_patience=0, lr=0.4))
    other.restore(course.state())
    assert other.rate == pytest.approx(0.04)


def test_patience_counts_tests_since_the_best():
    course = Course(schedule(lr_strategy="constant", patience=3))
    ends = [bool(course.note(recall)) and course.is_over for recall in RECALLS]
    assert ends.index(True) == 4  # 0.4, 0.5 again and 0.45 after the best of 0.5


def test_a_run_on_a_plateau_resumes_to_the_bit_and_ends_early(train, capsys):
    flags = ["--lr_strategy=reduce_on_plateau", "--plateau_patience=0", "--plateau_factor=0.5"]
    whole = train(*flags, "--run_name=whole")
    half = train(*flags, "--run_name=half", steps=3)
    train(*flags, "--run_name=half", f"--checkpoint={half / 'last.pt'}")
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in ("model", "criterion", "optimizer", "course"):
        assert ours[part] and parts_equal(ours[part], theirs[part])
    rates = [
        json.loads(line)["lr"]
        for line in (half / "stats.jsonl").read_text().splitlines()
        if json.loads(line)["kind"] == "train"
    ]
    assert rates[0] == 0.02 and rates[-1] < 0.02 and len(rates) == 6


def test_patience_ends_a_run_which_then_is_complete(train, capsys):
    same = ["--lr=0", "--freeze_bn=True", "--run_name=early"]
    flags = ["--patience=2", *same, "--checkpoint=auto"]
    folder = train(*flags, steps=9)
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint["step"] == checkpoint["tested"] == 3
    out = capsys.readouterr().out
    assert "stopping early: 2 tests in a row were not better than" in out
    train(*flags, steps=9)
    assert "has finished its 3 steps: nothing to do" in capsys.readouterr().out
    train("--patience=3", *same, f"--checkpoint={folder / 'last.pt'}")
    assert load_checkpoint(folder / "last.pt")["step"] == 4


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (train_elem, ["--adam_eps=1"], "--adam_eps is not used (--optimizer=sgd)"),
        (train_elem, ["--plateau_patience=1"], "--plateau_patience is not used (--lr_strategy="),
        (
            train_elem,
            ["--lr_strategy=constant", "--lr_gamma=0.5"],
            "--lr_gamma is not used (--lr_strategy=constant)",
        ),
        (train_elem, ["--plateau_factor=1"], "expected a number of 0 to below 1"),
        (train_elem, ["--layer_decay=1.5"], "expected a number above 0, at most 1"),
        (train_elem, ["--layer_decay=0"], "expected a number above 0, at most 1"),
        (
            train_elem,
            ["--clip_grad_norm=1", "--clip_grad_value=1"],
            "expected --clip_grad_norm or --clip_grad_value, found both",
        ),
        (
            train_elem,
            ["--lr_strategy=reduce_on_plateau", "--test_iter_step=1"],
            "looks at tests of validation images, and there are none",
        ),
        (train_elem, ["--patience=1", "--test_iter_step=0"], "nothing is tested"),
        (train_pair, ["--warm_head_steps=3"], "nothing but the backbone is trained"),
        (train_elem, ["--drop_path=1"], "expected a number of 0 to below 1"),
        (train_elem, ["--drop_path=0.5", "--model=vgg11"], "drop_path"),
    ],
)
def test_a_flag_without_use_is_one_line(script, flags, message, toy_flags, tmp_path, error_of):
    more = ["--model=test_resnet", "--total_iter_num=1", f"--model_save_dir={tmp_path}"]
    assert message in error_of(script.main, [*toy_flags, *more, *flags])


def test_frozen_features_have_no_use_for_what_concerns_the_backbone(toy_flags, error_of):
    for flag in ("--layer_decay=0.5", "--warm_head_steps=1", "--drop_path=0.1"):
        flags = [*toy_flags, "--trainable=head", "--pretrained_model=a.pt", flag]
        name = flag.partition("=")[0]
        assert f"{name} is not used" in error_of(train_elem.main, flags)
