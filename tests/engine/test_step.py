"""One update: parts, chunks, recomputed activations, half precision and what is not finite."""

import numpy as np
import pytest
import torch
from building import build_run
from torch import nn

import train_elem
import train_pair
from metric_learning.engine.train import stages
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.run import MOST_SKIPPED
from metric_learning.engine.train.step import Outcome, Step, seed_draws, spread_of
from metric_learning.engine.train.train import count
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES
from metric_learning.reader.batches.loader import to_inputs, train_loader

DRAWS = np.random.SeedSequence([6, 1, 2, 3])  # the stream of draws, and a key
LOSSES = (*ELEM_LOSSES, *PAIR_LOSSES)


def stage_loss_of(loss_name):
    return (stages.ELEM if loss_name in ELEM_LOSSES else stages.PAIR).loss


@pytest.fixture
def training_of(toy_flags):
    """Build the training of a small ResNet on the toy tree, batches of 12, from its flags."""

    def build(loss_name, *more):
        argv = [*toy_flags, "--model=test_resnet", f"--loss_name={loss_name}", "--lr=0.05"]
        argv += ["--train_batch_size=12", "--total_iter_num=9", "--test_iter_step=0", *more]
        return build_run(train_elem if loss_name in ELEM_LOSSES else train_pair, argv)

    return build


def batches_of(training, num_steps):
    return train_loader(
        training.train_set,
        training.sampler,
        training.preprocessing,
        start_step=0,
        end_step=num_steps,
        seed=0,
        num_workers=0,
        pin_memory=False,
    )


def inputs_of(training, batch):
    return to_inputs(batch, training.preprocessing, torch.device("cpu")), batch.labels


def step_of(training, stage_loss=None):
    """Return what updates the weights of a training."""
    options = training.options
    return Step(
        training.learner,
        stage_loss or stage_loss_of(options.loss.loss_name),
        training.preprocessing,
        options.batches,
        options.machine,
        options.optimizer,
    )


def run(training, num_steps=2):
    """Make some updates and return their figures, None of those that were not finite."""
    training.learner.model.train()
    if training.options.optimizer.freeze_bn:
        training.learner.model.eval()
    step = step_of(training)
    batches = batches_of(training, num_steps)
    return [figures_of(step(batch, number)) for number, batch in enumerate(batches)]


def figures_of(outcome):
    return outcome.figures if outcome.is_finite() else None


def weights_of(training):
    learner = training.learner
    return {
        **{f"model.{name}": value for name, value in learner.model.state_dict().items()},
        **{
            f"loss.{name}": value for name, value in training.learner.criterion.state_dict().items()
        },
    }


def assert_equal_weights(one, other, **tolerance):
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name, **tolerance)


def test_draws_are_those_of_torch_s_seed():
    torch.manual_seed(int(DRAWS.generate_state(1, np.uint64)[0]))
    expected = torch.rand(3)
    seed_draws(1, 2, 3)
    assert torch.equal(torch.rand(3), expected)


# An elastic loss draws its margins where the network has stopped drawing, after the last chunk.
@pytest.mark.parametrize("loss_name", [name for name in LOSSES if "elastic" not in name])
def test_chunks_of_a_batch_give_the_plain_update(training_of, loss_name):
    plain, chunked = (
        training_of(loss_name, "--freeze_bn=True", "--lr=0.005", f"--chunk_size={size}")
        for size in (0, 5)
    )
    start = {name: value.clone() for name, value in weights_of(plain).items()}
    outcomes = [run(training) for training in (plain, chunked)]
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            rtol = 1e-4 if name == "spread" else 1e-5
            torch.testing.assert_close(theirs[name], value, rtol=rtol, atol=1e-6)
    assert_equal_weights(plain, chunked, rtol=1e-4, atol=1e-6)
    changed = weights_of(plain)
    assert any(not torch.equal(changed[name], start[name]) for name in start)


def test_chunks_count_in_batch_norm_once_each(training_of):
    training = training_of("eml", "--chunk_size=6", "--lr=0")
    [batch] = batches_of(training, 1)
    images, _ = inputs_of(training, batch)
    reference = training_of("eml").learner.model.train()
    for chunk in images.split(6):
        reference(chunk)
    run(training, 1)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(training.learner.model.state_dict()[name], value, msg=name)


def test_both_passes_over_a_chunk_draw_the_same(training_of):
    """With dropout the gradients are those of the embeddings that the loss has seen."""
    training = training_of("softmax", "--freeze_bn=True", "--chunk_size=6", "--momentum=0")
    training.learner.model.embedding = nn.Dropout(0.5)
    training.learner.model.embedding.train()
    [batch] = batches_of(training, 1)
    images, labels = inputs_of(training, batch)
    before = training.learner.criterion.weight.detach().clone()
    step = step_of(training)
    training.learner.model.eval()
    training.learner.model.embedding.train()
    outcome = step(batch, 0)
    parts = []
    reference = training_of("softmax", "--freeze_bn=True", "--momentum=0")
    reference.learner.model.embedding = nn.Dropout(0.5)
    reference.learner.model.eval()
    reference.learner.model.embedding.train()
    for chunk, part in enumerate(images.split(6)):
        seed_draws(0, 0, 0, 0, chunk)
        parts.append(reference.learner.model(part))
    loss = reference.learner.criterion(torch.cat(parts), labels)[0]
    loss.backward()
    reference.learner.optimizer.param_groups[0]["lr"] = 0.05
    reference.learner.optimizer.step()
    torch.testing.assert_close(outcome.figures["loss"], loss.detach())
    assert not torch.equal(before, training.learner.criterion.weight)
    assert_equal_weights(training, reference, rtol=1e-5, atol=1e-7)


def test_the_draws_of_a_step_are_its_own():
    def drawn(*key):
        seed_draws(*key)
        return torch.rand(4)

    assert torch.equal(drawn(0, 3, 0, 0, 0), drawn(0, 3, 0, 0, 0))
    keys = [(0, 3, 0, 0, 0), (1, 3, 0, 0, 0), (0, 4, 0, 0, 0), (0, 3, 1, 0, 0), (0, 3, 0, 0, 1)]
    assert len({tuple(drawn(*key).tolist()) for key in keys}) == len(keys)


@pytest.mark.parametrize(("loss_name", "parts"), [("arcmargin", 3), ("eml", 2), ("triplet", 2)])
def test_parts_of_a_batch_have_losses_of_their_own(training_of, loss_name, parts):
    training = training_of(loss_name, "--freeze_bn=True", f"--accumulation_steps={parts}")
    reference = training_of(loss_name, "--freeze_bn=True")
    reference.learner.model.eval()
    [batch] = batches_of(training, 1)
    images, labels = inputs_of(training, batch)
    stage_loss = stage_loss_of(loss_name)
    losses = []
    for part in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        loss, _ = stage_loss(reference.learner.criterion, reference.learner.model(part[0]), part[1])
        (loss / parts).backward()
        losses.append(loss.detach())
    reference.learner.optimizer.step()
    [outcome] = run(training, 1)
    torch.testing.assert_close(outcome["loss"], torch.stack(losses).mean())
    assert_equal_weights(training, reference, rtol=1e-5, atol=1e-7)


def test_recomputed_activations_change_nothing(training_of):
    plain, recomputed = (training_of("eml", f"--with_mem_opt={word}") for word in ("no", "yes"))
    assert recomputed.learner.model.backbone.grad_checkpointing
    for training in (plain, recomputed):
        run(training, 3)
    assert_equal_weights(plain, recomputed, rtol=1e-6, atol=1e-7)


def test_a_model_that_cannot_recompute_is_an_error(training_of):
    with pytest.raises(ValueError, match="--with_mem_opt: inception_v4 cannot"):
        training_of("eml", "--model=inception_v4", "--image_shape=3,96,96", "--with_mem_opt=yes")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("amp", ["off", "float16"])
def test_what_is_not_finite_changes_no_weight(training_of, optimizer, amp):
    flags = [f"--optimizer={optimizer}", f"--amp={amp}", "--ema_decay=0.5"]
    training = training_of("softmax", *flags)
    average = training.learner.tested_model
    averaged = {name: value.clone() for name, value in average.state_dict().items()}
    before = {name: value.clone() for name, value in weights_of(training).items()}
    step = step_of(training, lambda *given: (stages.elem_loss(*given)[0] * torch.nan, {}))
    [batch] = batches_of(training, 1)
    assert not step(batch, 0).is_finite()
    after = weights_of(training)
    parameters = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    if amp == "float16":  # elsewhere the run ends
        assert all(torch.equal(averaged[name], average.state_dict()[name]) for name in averaged)

    # Nor does it leave anything in the optimizer: the next step is that of a run without it.
    training.learner.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=amp != "off")
    other = training_of("softmax", *flags)
    other.learner.model.load_state_dict(training.learner.model.state_dict())
    other.learner.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=amp != "off")
    for each in (training, other):
        step_of(each)(batch, 0)
    assert_equal_weights(training, other, rtol=0, atol=0)


def test_float16_lowers_its_scale_until_the_gradients_are_finite(training_of):
    training = training_of("arcmargin", "--amp=float16")
    training.learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    outcomes = run(training, 24)
    assert outcomes[0] is None and outcomes[-1] is not None
    num_good = outcomes[::-1].index(None)
    assert training.learner.scaler.state_dict()["_growth_tracker"] == num_good
    assert training.learner.scaler.get_scale() < 2.0**30
    assert all(parameter.isfinite().all() for parameter in training.learner.model.parameters())


def test_what_overflows_leaves_batch_norm_as_it_was(training_of):
    training = training_of("arcmargin", "--amp=float16")
    training.learner.model.train()
    [batch] = batches_of(training, 1)
    training.learner.model.backbone.get_submodule("conv1")[0].weight.data.fill_(6e4)
    before = {name: value.clone() for name, value in training.learner.model.state_dict().items()}
    assert not step_of(training)(batch, 0).is_finite()
    after = training.learner.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_half_precision_follows_float32(training_of, amp):
    losses = []
    for name in ("off", amp):
        training = training_of("eml", f"--amp={name}", "--lr=0.001")
        is_scaled = training.learner.scaler.is_enabled()  # from where no step overflows
        training.learner.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=is_scaled)
        losses.append([float(found["loss"]) for found in run(training)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_clipping_limits_the_norm_of_all_gradients(training_of):
    training = training_of("arcmargin", "--clip_grad_norm=0.01", "--momentum=0", "--weight_decay=0")
    training.learner.optimizer.param_groups[0]["lr"] = training.learner.optimizer.param_groups[1][
        "lr"
    ] = 1.0
    before = {name: value.clone() for name, value in weights_of(training).items()}
    run(training, 1)
    after = weights_of(training)
    trained = [name for name in before if "running" not in name and "tracked" not in name]
    moved = torch.stack([(after[name] - before[name]).norm() for name in trained]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_the_moving_average_follows_the_weights(training_of):
    training = training_of("eml", "--ema_decay=0.5")
    name = next(iter(training.learner.model.state_dict()))
    expected = training.learner.model.state_dict()[name].clone()
    step = step_of(training)
    for number, batch in enumerate(batches_of(training, 4)):
        step(batch, number)
        decay = training.learner.ema.get_decay(number + 1)
        expected = decay * expected + (1 - decay) * training.learner.model.state_dict()[name]
    average = training.learner.tested_model.state_dict()[name]
    torch.testing.assert_close(average, expected)
    assert not torch.equal(average, training.learner.model.state_dict()[name])


def test_a_compiled_network_trains_as_the_plain_one(training_of):
    plain, compiled = (training_of("eml", f"--compile={word}") for word in ("no", "yes"))
    for training in (plain, compiled):  # a small one, which is soon compiled
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16))
        training.learner.model.backbone = backbone
        training.learner.optimizer = build_optimizer(
            training.learner.model,
            nn.Identity(),
            training.learner.criterion,
            training.options.optimizer,
        )
    try:
        outcomes = run(compiled, 1)
    except ValueError as error:
        pytest.skip(str(error))
    torch.testing.assert_close(outcomes[0]["loss"], run(plain, 1)[0]["loss"])
    assert_equal_weights(plain, compiled, rtol=1e-3, atol=1e-5)


def test_spread_is_zero_where_all_embeddings_point_the_same_way():
    directions = torch.tensor([[1.0, 2, 3], [2, 4, 6], [0.5, 1, 1.5]])
    assert float(spread_of(directions)) == pytest.approx(0, abs=1e-6)
    assert float(spread_of(torch.eye(4))) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chunk_size=1"], "--chunk_size=1 cuts 12 images"),
        (["--chunk_size=2", "--train_batch_size=6", "--accumulation_steps=2"], "cuts 3 images"),
        (["--freeze_bn=True", "--model=test_vit", "--image_shape=3,160,160"], "no batch norm"),
    ],
)
def test_what_batch_norm_cannot_do_is_refused(training_of, flags, message):
    with pytest.raises(ValueError, match=message):
        training_of("softmax", *flags)


def test_step_flags_reach_the_sampler(training_of):
    with pytest.raises(ValueError, match=r"2 \(--samples_each_class\) x 4 \(--accumulation_steps"):
        training_of("eml", "--accumulation_steps=4")


def test_steps_that_overflow_are_skipped_up_to_a_limit(training_of, monkeypatch):
    training = training_of("arcmargin", "--amp=float16")
    monkeypatch.setattr(type(training), "say", lambda *_: None)
    monkeypatch.setattr(type(training), "list_images", lambda *_: "")
    overflown = Outcome({}, torch.tensor(False))
    for _ in range(MOST_SKIPPED + 1):
        count(training, overflown)
    with pytest.raises(ValueError, match="the training diverged at step 21"):
        count(training, overflown)  # a step is judged when the next one is on its way
