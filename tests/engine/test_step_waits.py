"""No step of a training waits for the device, whatever is done with the batch."""

import pytest
import torch
from building import build_run
from pretended_device import OnDevice, counted_waits, put_on_device
from test_step import batches_of, step_of

import train_elem
import train_pair
from metric_learning.engine.train import step as steps
from metric_learning.engine.train.optimizers import build_optimizer
from metric_learning.engine.train.train import count
from metric_learning.losses import ELEM_LOSSES

KINDS = {
    "class layer": ["--loss_name=arcmargin"],
    "blocks": ["--loss_name=eml"],
    "triples": ["--loss_name=triplet"],
    "accumulation": ["--loss_name=softmax", "--accumulation_steps=2"],
    "chunks": ["--loss_name=supcon", "--chunk_size=6"],
    "recomputed": ["--loss_name=npairs", "--with_mem_opt=True"],
    "memory": ["--loss_name=batch_triplet", "--mining=semihard", "--xbm_size=30"],
    "joint": ["--loss_name=smooth_ap", "--alpha=0.5"],
    "adamw": ["--loss_name=contrastive", "--optimizer=adamw", "--clip_grad_norm=1"],
    "centres": ["--loss_name=center", "--class_dropout=0.5"],
    "raw memory": ["--loss_name=hyperbolic", "--normalize_embeddings=True", "--xbm_size=30"],
    "neighbours": ["--loss_name=contextual", "--chunk_size=6"],
    "average": ["--loss_name=adaface", "--ema_decay=0.9"],
    "value": ["--loss_name=softmax", "--clip_grad_value=0.1", "--warm_head_steps=2"],
    "layers": ["--loss_name=softmax", "--optimizer=adam", "--layer_decay=0.5"],
    "float16": ["--loss_name=arcmargin", "--amp=float16"],
}


@pytest.mark.parametrize("flags", KINDS.values(), ids=[*KINDS])
def test_a_step_waits_for_nothing(toy_flags, monkeypatch, flags):
    script = train_elem if flags[0].split("=")[1] in ELEM_LOSSES else train_pair
    more = ["--model=test_resnet", "--train_batch_size=12", "--total_iter_num=9"]
    run = build_run(script, [*toy_flags, *more, "--test_iter_step=0", *flags])
    learner = run.learner
    for module in (learner.model, learner.criterion, learner.ema and learner.ema.module):
        if module is not None:
            put_on_device(module)
    learner.optimizer = build_optimizer(
        learner.model, learner.model.head, learner.criterion, run.options.optimizer
    )
    crops = steps.to_crops
    monkeypatch.setattr(steps, "to_crops", lambda *given: OnDevice(crops(*given)))
    monkeypatch.setattr(type(run), "say", lambda *_: None)

    if learner.scaler.is_enabled():  # from where no step overflows
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)

    learner.model.train()
    step = step_of(run)
    for number, batch in enumerate(batches_of(run, 4)):
        with counted_waits() as waits:
            count(run, step(batch, number))
        assert number == 0 or waits == []  # what is made once may wait
    run.settle()
    assert run.meter.num_steps == 4
