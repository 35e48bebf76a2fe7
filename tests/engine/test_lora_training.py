"""--lora_rank: what a training with adapters leaves behind needs no peft."""

import sys

import numpy as np
import pytest
import torch
from test_fit import parts_equal

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.models import build_model
from metric_learning.models.weights.fingerprint import hash_weights

pytest.importorskip("peft")
SHORT = [
    *("--model=test_vit", "--train_batch_size=8", "--lr=0.05", "--display_iter_step=1"),
    *("--test_iter_step=0", "--save_iter_step=0", "--embedding_size=6", "--weight_decay=0.1"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(build_model("test_vit", image_size=32).backbone.state_dict(), file)
    return file


@pytest.fixture
def train(toy_flags, weights, tmp_path):
    def run(*flags, script=train_elem, steps=2, start=weights):
        more = [f"--model_save_dir={tmp_path}", f"--total_iter_num={steps}"]
        more += [f"--pretrained_model={start}"] if start else []
        return script.main([*toy_flags, *SHORT, *more, *map(str, flags)])

    return run


def test_checkpoints_hold_merged_weights_that_need_no_peft(
    train, weights, toy_tree, tmp_path, monkeypatch
):
    folder = train("--lora_rank=2")
    start, state = torch.load(weights), load_checkpoint(folder / "last.pt")["model"]
    changed = {
        name for name, value in start.items() if not torch.equal(state[f"backbone.{name}"], value)
    }
    linear = {f"blocks.{n}.{part}.weight" for n in range(6) for part in ("attn.qkv", "mlp.fc2")}
    assert linear <= changed and all(name.endswith("weight") for name in changed)
    assert {"norm.weight", "patch_embed.proj.weight", "blocks.0.norm1.weight"}.isdisjoint(changed)
    assert hash_weights(folder / "last.pt") == hash_weights(folder / "last.safetensors")

    monkeypatch.setitem(sys.modules, "peft", None)
    features = []
    for name in ("last.pt", "last.safetensors"):
        file = tmp_path / f"{name}.npy"
        about = [f"--pretrained_model={folder / name}", "--use_gpu=False", "--num_workers=0"]
        eval_script.main([*about, f"--features={file}"])
        features.append(np.load(file))
    np.testing.assert_array_equal(*features)
    second = train("--loss_name=eml", script=train_pair, start=folder / "last.pt", steps=1)
    assert load_checkpoint(second / "last.pt")["live_model"] is None


@pytest.mark.parametrize("more", [["--optimizer=adamw", "--layer_decay=0.5"], ["--chunk_size=4"]])
def test_a_resume_is_bit_for_bit(more, train):
    whole = train("--lora_rank=2", "--run_name=whole", *more, steps=4)
    half = train("--lora_rank=2", "--run_name=half", *more)
    train("--run_name=half", f"--checkpoint={half / 'last.pt'}", steps=4)
    ours, theirs = load_checkpoint(half / "last.pt"), load_checkpoint(whole / "last.pt")
    for part in ("model", "live_model", "criterion", "optimizer"):
        assert ours[part] and parts_equal(ours[part], theirs[part])
    assert any(".lora_B." in name for name in ours["live_model"])
    in_optimizer = sum(len(group["params"]) for group in ours["optimizer"]["param_groups"])
    assert in_optimizer == 2 * 6 * 4 + 2 + 2  # adapters, embedding layer, class layer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_rank=2", "--trainable=norm"], "--lora_rank is not used (--trainable=norm"),
        (["--lora_rank=2", "--ema_decay=0.9"], "--ema_decay is not used (with --lora_rank"),
        (["--lora_rank=-1"], "expected an integer of at least 0"),
        (["--lora_rank=2", "--pretrained_model="], "--pretrained_model"),
    ],
)
def test_what_adapters_do_not_go_with_is_one_line(flags, message, train, error_of):
    assert message in error_of(lambda given: train(*given), flags)


def test_adapters_beside_random_weights_are_refused(train, error_of):
    line = error_of(lambda given: train(*given, start=None), ["--lora_rank=2"])
    assert "--lora_rank=2 freezes weights of the backbone, which would be random" in line
