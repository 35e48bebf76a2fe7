"""What scripts say of their images before they work on them, and which images they refuse."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import eval as eval_script
from metric_learning.engine.embed.embedder import open_images
from metric_learning.engine.evaluate.scoring import score_images
from metric_learning.engine.options.parts import DataOptions
from metric_learning.engine.search.infer import open_plain_images
from metric_learning.engine.train import start
from metric_learning.reader import ImageError

NO_DATA = dict.fromkeys(DataOptions.__dataclass_fields__)


def data_of(**options):
    return DataOptions(**{**NO_DATA, **options})


def lines_of(data, split="test"):
    """The lines that eval, infer and report say first."""
    lines = []
    work = SimpleNamespace(data=data, split=split, say=lines.append)
    return open_images(work), lines


def announced(data):
    """The lines that a training says of its images."""
    lines = []
    run = SimpleNamespace(
        train_set=data.load("train"),
        test_set=[*start.load_splits(data, True, False).values()][1],
        say=lines.append,
        say_all=lines.extend,
        sampler=SimpleNamespace(note=""),
        machine=SimpleNamespace(world=SimpleNamespace(size=1, is_main=True), device="cpu"),
        learner=SimpleNamespace(model=SimpleNamespace(parameters=list, embedding_size=8)),
        options=SimpleNamespace(
            model=SimpleNamespace(model="net"),
            loss=SimpleNamespace(loss_name="eml", kept=None),
            schedule=SimpleNamespace(lr=0.1),
            optimizer=SimpleNamespace(trainable="all", lora_rank=0),
        ),
        start=SimpleNamespace(notes=[], checkpoint=None, origin=None),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "caveats_of", lambda run: [])
        start.announce(run)
    return lines


@pytest.fixture
def photos(tmp_path):
    """A list of ten classes of two images each: six to train on, two for each test."""
    lines = ["path,label,split"]
    for label in range(1, 11):
        split = "train" if label <= 6 else "val" if label <= 8 else "test"
        for view in range(2):
            Image.new("RGB", (40, 32), (label * 20, view * 99, 9)).save(
                tmp_path / f"{label}{view}.png"
            )
            lines.append(f"{label}{view}.png,{label}.0,{split}")
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "photos.csv"


def test_the_val_split_is_tested_in_training_and_said(photos):
    data = data_of(dataset="csv", csv=str(photos))
    assert start.load_splits(data, True, False)["val"].class_names == {6: "7", 7: "8"}
    lines = announced(data)
    assert lines[:4] == [
        "train: csv, 12 images of 6 classes",
        "read as the same: .0 behind labels (20)",
        "val: 4 images of 2 classes",
        "the val split is tested here and chooses best.pt; eval.py tests on the test split",
    ]
    assert lines_of(data)[1][0] == "test: csv, 4 images of 2 classes"


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_every_split_is_evaluated(photos, split, capsys, tmp_path):
    result = eval_script.main([
        *("--pretrained_model=random", "--model=test_resnet", "--image_shape=3,32,32"),
        *("--dataset=csv", f"--csv={photos}", f"--split={split}", "--use_gpu=False"),
        *("--num_workers=0", "--batch_size=20"),
    ])  # fmt: skip
    sizes = {"train": 12, "val": 4, "test": 4, "all": 20}
    assert result["evaluated"]["images"] == sizes[split]
    assert f"{split}: csv, {sizes[split]} images of" in capsys.readouterr().out


def test_classes_of_training_may_be_named_where_the_test_is_evaluated(photos):
    data = data_of(dataset="csv", csv=str(photos), train_classes="1-5", test_classes="2")
    image_set, lines = lines_of(data)
    assert image_set.class_names == {9: "10"}
    assert "test: classes 2 of 2: 10" in lines
    assert lines[-1] == "0 of these classes are among the 5 of train"


def test_both_doors_refuse_what_is_missing_or_listed_twice(photos):
    text = photos.read_text()
    (photos.parent / "71.png").unlink()
    data = data_of(dataset="csv", csv=str(photos))
    with pytest.raises(ImageError, match=r"photos.csv:15: no image .*71.png \(1 of 4 images of"):
        start.load_splits(data, True, False)
    photos.write_text(text + text.splitlines()[-1])
    with pytest.raises(ImageError, match=r"photos.csv:22: .*101.png is listed in .*:21 already"):
        lines_of(data)
    work = SimpleNamespace(data=data, split="test", say=list)
    assert len(open_images(work, may_repeat=True)) == 5  # features of it are no scores


def test_plain_images_are_counted_and_what_is_left_out(photos, capsys):
    open_plain_images([str(photos.parent)])
    out = capsys.readouterr().out
    assert "images: 20 images\n" in out
    assert f"left out of {photos.parent}: 1 file that is no image (.csv 1)\n" in out


def test_an_image_that_is_query_and_in_the_gallery_does_not_find_itself(photos, tmp_path):
    rows = ["path,label,is_query,is_gallery", "10.png,1,True,True", "20.png,1,False,True"]
    rows += ["30.png,2,False,True", "11.png,3,,"]
    (tmp_path / "roles.csv").write_text("\n".join(rows))
    image_set, _ = lines_of(data_of(dataset="csv", csv=str(tmp_path / "roles.csv")))
    embeddings = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    scores = score_images(image_set, embeddings, start.torch.device("cpu"))
    assert scores.columns["recall@1"].tolist() == [0.0]
