"""Frozen weights: --trainable=norm, and --trainable=head on features that are computed once."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from building import build_run
from test_fit import parts_equal

import eval as eval_script
import train_elem
import train_pair
from metric_learning.engine.embed import frozen
from metric_learning.engine.embed.network import build_frozen
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.models import build_model, choose_trainable, save_weights
from metric_learning.reader.batches.views import ViewBatches

HEAD = ["--trainable=head", "--embedding_size=8", "--views=3"]
LINEAR = ["--loss_name=normsoftmax", "--lr=0.1", "--total_iter_num=4"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of a tiny network with trained statistics, as a file."""
    torch.manual_seed(3)
    model = build_model("test_resnet", image_size=32)
    model(torch.randn(16, 3, 32, 32))  # statistics of batch norm
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(model, path, {})
    return path


@pytest.fixture
def flags(tiny_flags, weights, tmp_path):
    """Flags of a run from these weights."""
    quiet = ["--test_iter_step=0", "--save_iter_step=0"]
    tiny = [flag for flag in tiny_flags if not flag.startswith("--loss_name=")]
    return [*tiny, f"--pretrained_model={weights}", *quiet]


def model_of(folder, name="model"):
    return load_checkpoint(folder / "last.pt")[name]


def kept_files(folder):
    """Features of training images, the path of the file and its time."""
    found = sorted((folder / "frozen_features").glob("*_train_*.npy"))
    return {path: path.stat().st_mtime_ns for path in found}


def recalls_of(folder):
    records = map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
    return [record["recall@1"] for record in records if record["kind"] == "test"]


def assert_frozen(before, after, is_free):
    """All tensors of the backbone are those of before, but those whose names are free."""
    names = [name for name in before if name.startswith("backbone.")]
    changed = {name for name in names if not torch.equal(before[name], after[name])}
    assert changed == {name for name in names if is_free(name)}


@pytest.mark.parametrize("stats", ["kept", "learned"])
def test_norm_trains_the_norms_of_the_backbone_alone(flags, tmp_path, stats):
    """Neither weight decay nor the moving average changes a bit of other weights."""
    start = build_run(train_elem, [*flags, *LINEAR]).learner.model.state_dict()
    argv = [*flags, *LINEAR, "--trainable=norm", "--pooling=gem", "--embedding_size=8"]
    argv += ["--weight_decay=0.1", "--ema_decay=0.5", f"--freeze_bn={stats == 'kept'}"]
    folder = train_elem.main(argv)
    norms = [
        name
        for name, module in build_model("test_resnet").named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    assert len(norms) > 10
    affine = {f"{name}.{kind}" for name in norms for kind in ("weight", "bias")}
    affine.add("backbone.global_pool.pool.p")

    def is_free(name):
        return name in affine or (stats == "learned" and ".running_" in name)

    start["backbone.global_pool.pool.p"] = torch.tensor([3.0])
    for name in ("model", "live_model"):
        after = model_of(folder, name)
        counters = {key for key in start if key.endswith("num_batches_tracked")}
        kept = {key: start[key] for key in start if key not in counters}
        assert_frozen(kept, after, is_free)


def test_norm_of_a_transformer_and_of_a_network_without_norms():
    model = build_model("test_vit")
    choose_trainable(model, "norm")
    names = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert names and all("norm" in name for name in names)
    model.backbone = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="test_vit has no normalisation layer with weights"):
        choose_trainable(model, "norm")


@pytest.mark.parametrize(
    "more",
    [
        ["--ema_decay=0.5", "--weight_decay=0.1", "--feature_norm=bnneck"],
        ["--pooling=gem", "--optimizer=adamw", "--clip_grad_norm=1", "--amp=bfloat16"],
    ],
)
def test_head_leaves_every_bit_of_the_backbone(flags, more, tmp_path):
    first = build_run(train_elem, [*flags, *HEAD, *LINEAR, *more]).learner.model
    start = {name: value.clone() for name, value in first.state_dict().items()}
    folder = train_elem.main([*flags, *HEAD, *LINEAR, *more])
    for name in ("model", "live_model") if "--ema_decay=0.5" in more else ("model",):
        after = model_of(folder, name)
        assert after.keys() == start.keys()
        assert_frozen(start, after, lambda name: False)
        assert not torch.equal(start["embedding.weight"], after["embedding.weight"])
    assert len(load_checkpoint(folder / "last.pt")["optimizer"]["param_groups"][0]["params"]) < 5


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (train_elem, ["--loss_name=normsoftmax"]),
        (train_pair, ["--loss_name=multi_similarity", "--feature_norm=layernorm"]),
    ],
)
def test_head_makes_the_updates_of_a_frozen_network_on_the_same_views(flags, script, more):
    """Against a plain loop: network in evaluation mode, its crops, torch's SGD."""
    argv = [*flags, *HEAD, "--lr=0.1", "--total_iter_num=3", *more]
    oracle = build_run(script, argv)
    model, criterion = oracle.learner.model.eval(), oracle.learner.criterion
    parameters = [*model.top.parameters(), *criterion.parameters()]
    sgd = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-4)
    rows = np.arange(len(oracle.train_set))
    views = ViewBatches(oracle.train_set, oracle.preprocessing, rows, 1, num_views=3)
    stage = build_run(script, argv)  # draws of its own
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))

    for step in range(3):
        indices = oracle.sampler.batch(step)
        drawn = np.random.default_rng([9, 0, step]).integers(3, size=8)
        crops = [views.read(i).images[1 + view] for i, view in zip(indices, drawn, strict=True)]
        inputs = (torch.stack(crops).float() / 255 - mean) / std
        loss = criterion(model(inputs), torch.from_numpy(oracle.train_set.labels[indices]))
        sgd.zero_grad()
        (loss[0] if isinstance(loss, tuple) else loss).backward()
        sgd.step()

    folder = script.main(argv)
    after = load_checkpoint(folder / "last.pt")
    expected = dict(model.state_dict())
    torch.testing.assert_close(dict(after["model"]), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        dict(after["criterion"]), dict(criterion.state_dict()), rtol=1e-4, atol=1e-6
    )
    assert not torch.equal(expected["embedding.weight"], stage.learner.model.embedding.weight)


def test_folds_seeds_and_losses_share_the_features_of_all_training_images(flags, tmp_path):
    tested = [*flags, *HEAD, "--test_iter_step=2"]
    train_elem.main([*tested, *LINEAR])
    before = kept_files(tmp_path)
    [path] = before
    features = np.load(path, mmap_mode="r")
    assert features.shape == (24, 4 * build_model("test_resnet").feature_size)
    train_elem.main([*tested, *LINEAR, "--val_fold=0/3", "--seed=1"])
    train_elem.main([*tested, "--loss_name=arcmargin", "--val_fold=2/3", "--total_iter_num=2"])
    pair = ["--loss_name=triplet", "--total_iter_num=2", "--train_batch_size=6", "--lr=0.01"]
    train_pair.main([*tested, *pair, "--val_fold=1/2:images", "--feature_norm=bnneck"])
    assert kept_files(tmp_path) == before


@pytest.mark.parametrize("split", ["test", "val"])
def test_eval_gives_the_recall_of_the_run_s_own_test(flags, tmp_path, split):
    fold = ["--val_fold=1/3"] if split == "val" else []
    more = ["--ema_decay=0.5", "--feature_norm=bnneck", "--test_iter_step=2"]
    folder = train_elem.main([*flags, *HEAD, *LINEAR, *more, *fold])
    argv = [f"--pretrained_model={folder / 'last.pt'}", f"--split={split}", "--num_workers=0"]
    assert eval_script.main(argv)["recall@1"] == pytest.approx(recalls_of(folder)[-1], abs=1e-6)


def test_other_weights_and_views_have_other_files_and_changed_images_are_computed_again(
    flags, toy_tree, weights, tmp_path, capsys
):
    tree = tmp_path / "tree"
    shutil.copytree(toy_tree, tree)
    argv = [*flags, *HEAD, *LINEAR, f"--data_dir={tree}"]
    train_elem.main(argv)
    [first] = kept_files(tmp_path)
    before = np.load(first)

    others = ("--views=2", "--min_crop_area=0.5", "--horizontal_flip=False", "--resize_ratio=1.2")
    augmented = ("--crop_aspect=1,1", "--color_jitter=0,0.2,0,0", "--random_erasing=0.5")
    for more in (*others, *augmented, "--resize_first=24", "--rand_augment=1,9"):
        train_elem.main([*argv, more])
    assert len(kept_files(tmp_path)) == 10
    model = build_model("test_resnet", pretrained_model=weights)
    with torch.no_grad():
        model.backbone.conv1[0].weight.mul_(2)
    other = tmp_path / "other.safetensors"
    save_weights(model, other, {})
    train_elem.main([*argv, f"--pretrained_model={other}"])
    assert len(kept_files(tmp_path)) == 11

    shutil.copyfile(tree / "train/class_0/1.png", tree / "train/class_0/0.png")
    capsys.readouterr()
    train_elem.main(argv)
    out = capsys.readouterr().out
    assert "1 of 24 images have changed, and their features are computed again" in out
    assert "computing 1 x 4 features" in out
    after = np.load(first)
    assert (before[1:] == after[1:]).all() and (before[0] != after[0]).any()
    np.testing.assert_allclose(*after[:2].reshape(2, 4, -1)[:, 0], rtol=1e-3, atol=1e-6)


def test_interrupted_computing_goes_on(flags, tmp_path, monkeypatch):
    argv = [*flags, *HEAD, *LINEAR]
    monkeypatch.setattr(frozen, "CROPS_AT_ONCE", 16)  # four images
    build_run(train_elem, argv)
    [path] = kept_files(tmp_path)
    whole = np.load(path)
    shutil.rmtree(tmp_path / "frozen_features")
    real = frozen.refuse_not_finite

    def interrupt(features, paths):
        real(features, paths)
        if paths[0].endswith("class_2/0.png"):
            raise KeyboardInterrupt

    monkeypatch.setattr(frozen, "refuse_not_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_run(train_elem, argv)
    done = np.fromfile(f"{path}.done", np.uint8)
    assert done.tolist() == [1] * 8 + [0] * 16

    computed = []
    monkeypatch.setattr(frozen, "refuse_not_finite", lambda _, paths: computed.extend(paths))
    build_run(train_elem, argv)
    assert len(computed) == 16
    np.testing.assert_array_equal(np.load(path), whole)


def test_processes_that_need_a_file_at_once_compute_it_once(flags, start, tmp_path):
    argv = [*flags, *HEAD, *LINEAR, "--views=40"]
    runs = [start(*argv, f"--run_name={name}") for name in ("one", "other")]
    assert [run.wait() for run in runs] == [0, 0], [run.output for run in runs]
    assert sum(run.output.count("computing 24 x 41 features") for run in runs) == 1
    ours, theirs = (model_of(tmp_path / name) for name in ("one", "other"))
    assert parts_equal(dict(ours), dict(theirs))


def test_a_killed_run_leaves_features_that_are_completed(flags, start, tmp_path):
    argv = [*flags, *HEAD, *LINEAR, "--views=400"]
    run = start(*argv)
    run.wait_for("computing 24 x 401")
    run.signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run = start(*argv, "--views=400")
    assert run.wait() == 0, run.output
    [path] = kept_files(tmp_path)
    assert not os.path.exists(f"{path}.done")


@pytest.mark.parametrize(
    ("script", "more"),
    [
        (train_elem, [*LINEAR, "--feature_norm=bnneck", "--ema_decay=0.9"]),
        (train_pair, ["--loss_name=contrastive", "--xbm_size=16", "--lr=0.01", "--alpha=0.5"]),
    ],
)
def test_a_resumed_run_is_the_whole_run_to_the_bit(flags, weights, script, more, tmp_path):
    argv = [*flags, *HEAD, *more]
    whole = script.main([*argv, "--total_iter_num=4", "--run_name=whole"])
    auto = [*argv, "--run_name=parts", "--checkpoint=auto"]
    script.main([*auto, "--total_iter_num=2"])
    parts = script.main([*auto, "--total_iter_num=4"])
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in (whole, parts))
    for part in ("model", "live_model", "criterion", "optimizer"):
        assert parts_equal(ours[part], theirs[part]), part


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        ("multi_similarity", ["--chunk_size=3"]),
        ("eml", ["--accumulation_steps=2", "--samples_each_class=2"]),
        ("triplet", ["--train_batch_size=6"]),
        ("contrastive", ["--xbm_size=16", "--alpha=0.5"]),
        ("pml:TripletMarginLoss", ["--feature_norm=bnneck"]),
    ],
)
def test_head_trains_with_losses_of_pairs(flags, loss, more, tmp_path):
    argv = [*flags, *HEAD, f"--loss_name={loss}", "--total_iter_num=3", "--lr=0.01", *more]
    folder = train_pair.main([*argv, "--test_iter_step=3"])
    assert len(recalls_of(folder)) == 2  # of the start too
    assert "start: loss" in (folder / "log.txt").read_text()


def test_chunks_of_features_give_the_plain_update(flags):
    argv = [*flags, *HEAD, "--loss_name=multi_similarity", "--lr=0.1", "--total_iter_num=2"]
    plain, chunked = (
        train_pair.main([*argv, f"--chunk_size={size}", f"--run_name=of_{size}"]) for size in (0, 3)
    )
    ours, theirs = model_of(plain), model_of(chunked)
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-6)


def test_stage_2_goes_on_with_the_embedding_layer_of_stage_1(flags, tmp_path):
    first = train_elem.main([*flags, *LINEAR, "--embedding_size=8"])
    argv = [*flags, f"--pretrained_model={first / 'last.pt'}", "--trainable=head"]
    argv += ["--loss_name=multi_similarity", "--total_iter_num=0", "--lr=0.1"]
    second = train_pair.main(argv)
    assert parts_equal(dict(model_of(first)), dict(model_of(second)))


def test_models_of_a_process_share_a_backbone_and_not_what_trains(flags, weights):
    runs = [build_run(train_elem, [*flags, *HEAD, *LINEAR, f"--seed={seed}"]) for seed in (1, 1, 2)]
    models = [run.learner.model for run in runs]
    assert models[0].backbone is models[1].backbone
    drawn = [model.embedding.weight for model in models]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with torch.no_grad():
        drawn[0].zero_()
    options = runs[0].options.model
    assert torch.equal(build_frozen(options, 1)[0].embedding.weight, drawn[1])


@pytest.mark.parametrize(
    ("script", "more", "words"),
    [
        (train_elem, ["--views=4"], "--views is not used (--trainable=all keeps no features)"),
        (train_elem, ["--trainable=norm", "--features_dir=x"], "--features_dir is not used"),
        (train_elem, [*HEAD, "--cache=x"], "--cache is not used (--trainable=head trains on kept"),
        (train_elem, [*HEAD, "--freeze_bn=True"], "--freeze_bn is not used"),
        (train_elem, [*HEAD, "--on_bad_image=skip"], "--on_bad_image is not used"),
        (
            train_pair,
            ["--trainable=head", "--loss_name=eml", "--feature_norm=layernorm"],
            "--trainable=head finds nothing to train behind the backbone: give",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(flags, script, more, words, error_of):
    assert words in error_of(script.main, [*flags, *more])


def test_a_loss_alone_trains_on_frozen_features(flags, error_of):
    """A class layer on the features themselves, which stay as they are."""
    argv = [*flags, "--trainable=head", *LINEAR]
    start = build_run(train_elem, argv).learner.criterion.state_dict()
    for more in ([], ["--chunk_size=3"]):
        folder = train_elem.main([*argv, *more])
        assert not torch.equal(start["weight"], model_of(folder, "criterion")["weight"])
    assert "--ema_decay finds no weights" in error_of(train_elem.main, [*argv, "--ema_decay=0.9"])


@pytest.mark.parametrize("trainable", ["norm", "head"])
def test_frozen_weights_have_to_come_from_somewhere(tiny_flags, trainable, error_of):
    error = error_of(train_elem.main, [*tiny_flags, f"--trainable={trainable}"])
    assert f"--trainable={trainable} freezes weights of the backbone, which would be" in error


def test_a_folder_that_cannot_be_written_is_named(flags, weights, error_of):
    error = error_of(train_elem.main, [*flags, *HEAD, *LINEAR, f"--features_dir={weights}"])
    assert f"cannot write to --features_dir={weights} (File exists): choose another" in error


def test_a_run_is_resumed_with_what_it_trained(flags, error_of, tmp_path):
    argv = [*flags, *LINEAR, "--embedding_size=8"]
    folder = train_elem.main(argv)
    error = error_of(train_elem.main, [*argv, f"--checkpoint={folder}/last.pt", *HEAD])
    assert "trainable" in error


def test_two_processes_train_the_head_as_one_does(flags, torchrun, tmp_path):
    argv = [*flags, *HEAD, *LINEAR, "--test_iter_step=2"]
    one = train_elem.main([*argv, "--run_name=one"])
    shutil.rmtree(tmp_path / "frozen_features")  # two compute it together
    torchrun([train_elem.__file__, *argv, "--run_name=two"])
    ours, theirs = model_of(one), model_of(tmp_path / "two")
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-6)
    assert recalls_of(one) == pytest.approx(recalls_of(tmp_path / "two"), abs=1e-6)
