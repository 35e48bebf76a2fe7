"""Every door decodes alike: features, cache, device, report, scan and check."""

import csv
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.speed.reader import InOrder
from metric_learning.data.prepare import __main__ as prepare
from metric_learning.engine.report import plots
from metric_learning.engine.report.subjects import build_subject
from metric_learning.reader import ImageError, ImageSet, check
from metric_learning.reader.batches.cache import CacheError
from metric_learning.reader.batches.cache_build import open_cache
from metric_learning.reader.batches.loader import Reading, eval_loader, to_crops, train_loader
from metric_learning.reader.batches.on_device import JpegFile, decode_on_device, read_file
from metric_learning.reader.preprocessing import Preprocessing
from metric_learning.reader.transforms import IMAGENET_MEAN, IMAGENET_STD

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # orientation -> what turns an upright image into its stored pixels


def picture(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 64), Image.Resampling.BICUBIC)


def make_set(paths):
    labels = np.arange(len(paths), dtype=np.int64) % 2
    everything = np.ones(len(paths), bool)
    names = {0: "a", 1: "b"}
    return ImageSet("toy", "train", list(map(str, paths)), labels, names, everything, everything)


@pytest.fixture
def phone_photos(tmp_path):
    """The picture in all orientations, as the phone stores it, in two formats."""
    folder = tmp_path / "phone" / "class"
    folder.mkdir(parents=True)
    for kind, options in (("jpg", {"quality": 100, "subsampling": 0}), ("png", {})):
        for orientation, transpose in TRANSPOSES.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored = picture().transpose(transpose)
            stored.save(folder / f"{orientation}.{kind}", exif=exif, **options)
    return make_set(sorted(folder.iterdir()))


@pytest.fixture
def cut_outs(tmp_path):
    """A picture that is transparent on its left, and has noise stored there."""
    (tmp_path / "cut" / "class").mkdir(parents=True)
    pixels = np.dstack([np.asarray(picture()), np.full((64, 48), 255, np.uint8)])
    pixels[:, :24] = np.random.default_rng(1).integers(0, 256, (64, 24, 4), dtype=np.uint8)
    pixels[:, :24, 3] = 0
    path = tmp_path / "cut" / "class" / "1.png"
    Image.fromarray(pixels).save(path)
    return make_set([path])


def preprocessing(transform, **options):
    return Preprocessing(transform, 32, IMAGENET_MEAN, IMAGENET_STD, **options)


def features_of(image_set, transform, **options):
    """What the network gets of all images, (N, 3, 32, 32) uint8."""
    loader = eval_loader(
        image_set,
        preprocessing(transform, **options),
        batch_size=len(image_set),
        num_workers=0,
        pin_memory=False,
    )
    return next(iter(loader)).images.numpy()


def cache_of(image_set, folder, transform):
    return open_cache(
        image_set,
        folder,
        40,
        preprocessing(transform).decoding,
        num_workers=1,
        on_bad_image="error",
        log=[].append,
    )


def near(found, expected):
    """Whether images are equal, but for what JPEG leaves of them."""
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 8


@pytest.mark.parametrize("transform", ["reference", "standard"])
def test_phone_photos_are_upright_in_features_and_in_the_cache(phone_photos, transform, tmp_path):
    picture().save(tmp_path / "upright.png")
    upright = make_set([tmp_path / "upright.png"])
    [expected] = features_of(upright, transform)
    assert all(near(found, expected) for found in features_of(phone_photos, transform))
    cached = cache_of(phone_photos, tmp_path / "cache", transform)
    reduced = cache_of(upright, tmp_path / "other", transform).read_image(0)
    assert reduced.shape == (53, 40, 3)
    for i in range(len(phone_photos)):
        assert near(cached.read_image(i), reduced)


def crops_on_device(image_set):
    """The training crops that a device makes of 14 images, (14, 3, 32, 32) uint8; and the batch."""
    loader = train_loader(
        image_set,
        InOrder(len(image_set), 14),
        preprocessing("standard"),
        start_step=0,
        end_step=1,
        seed=0,
        num_workers=0,
        pin_memory=False,
        reading=Reading("files"),
    )
    [batch] = loader
    return to_crops(batch, preprocessing("standard"), torch.device("cpu")).numpy(), batch


def test_phone_photos_are_upright_on_the_device_and_in_the_report(phone_photos, tmp_path):
    expected = np.asarray(picture())
    picture().save(tmp_path / "upright.png")
    upright, _ = crops_on_device(make_set([tmp_path / "upright.png"] * 14))
    found, batch = crops_on_device(phone_photos)
    assert near(found, upright)
    assert sum(len(group.files) for group in batch.images.groups) == 7
    assert isinstance(read_file(phone_photos, 0), JpegFile)

    subject = build_subject(phone_photos, np.zeros((14, 2), np.float32), {}, {}, [])
    assert all(near(subject.read_image(row), expected) for row in range(14))


def test_the_gpu_decoder_waits_for_queued_kernels_and_its_images_are_turned(
    phone_photos, monkeypatch
):
    """A stand-in: nvJPEG writes on a stream of its own, and leaves orientation out."""
    calls = []

    class Stream:
        def synchronize(self):
            calls.append("waited")

    def decode(data, mode, device):
        calls.append("decoded")
        stored = [Image.open(io.BytesIO(part.numpy().tobytes())) for part in data]
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in stored]

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr("torchvision.io.decode_jpeg", decode)
    found = [read_file(phone_photos, i) for i in range(len(phone_photos))]
    files = [
        (image.path, image.orientation, torch.from_numpy(image.data.copy()))
        for image in found
        if isinstance(image, JpegFile)
    ]
    images = decode_on_device(files, torch.device("cuda"))
    assert calls == ["waited", "decoded"] and len(images) == 7
    for image in images:
        assert near(image.permute(1, 2, 0).numpy(), np.asarray(picture()))


def test_the_cache_knows_what_became_of_transparent_pixels(cut_outs, tmp_path):
    for transform, is_white in (("standard", True), ("reference", False)):
        [features] = features_of(cut_outs, transform)
        assert (features[:, :, :8].min() == 255) == is_white
        folder = tmp_path / transform
        assert (
            cache_of(cut_outs, folder, transform).read_image(0)[:, :16].min() == 255
        ) == is_white
        other = "reference" if is_white else "standard"
        with pytest.raises(CacheError, match="is a cache of other alpha"):
            cache_of(cut_outs, folder, other)


def test_a_cache_of_another_decoder_is_refused(cut_outs, tmp_path):
    folder = tmp_path / "cache"
    cache_of(cut_outs, folder, "standard")
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"decoder": 1}))
    with pytest.raises(CacheError, match=r"is a cache of other decoder \(1, not 2\)"):
        cache_of(cut_outs, folder, "standard")


def test_the_report_shows_what_the_network_saw(cut_outs):
    for transform, is_white in (("standard", True), ("reference", False)):
        made = {"transform": transform, "image_shape": (3, 32, 32), "pretrained_model": "a.pt"}
        subject = build_subject(cut_outs, np.zeros((1, 2), np.float32), made, {}, [])
        assert (subject.read_image(0)[:, :24].min() == 255) == is_white


def test_the_words_of_an_export_say_so():
    upright = "turn it upright, as its EXIF orientation tells"
    assert f"{upright}; drop alpha" in preprocessing("reference").steps()[0]
    assert f"{upright}; compose transparent pixels on white" in preprocessing("standard").steps()[0]


def test_one_limit_in_features_cache_and_report(phone_photos, tmp_path):
    Image.new("L", (1100, 1000)).save(tmp_path / "large.png")
    large = make_set([tmp_path / "large.png"])
    small = preprocessing("standard", max_pixels=1)
    with pytest.raises(ImageError, match="give --max_pixels=2"):
        features_of(large, "standard", max_pixels=1)
    with pytest.raises(ImageError, match="give --max_pixels=2"):
        open_cache(
            *(large, tmp_path / "cache", 40, small.decoding),
            num_workers=1,
            on_bad_image="error",
            log=print,
        )
    subject = build_subject(large, np.zeros((1, 2), np.float32), {"max_pixels": 1} | MADE, {}, [])
    with pytest.raises(ImageError, match="give --max_pixels=2"):
        subject.read_image(0)
    assert features_of(large, "standard", max_pixels=2).shape == (1, 3, 32, 32)


MADE = {"transform": "standard", "image_shape": (3, 32, 32), "pretrained_model": "a.pt"}


def test_the_picture_of_neighbours_is_upright(phone_photos):
    assert near(plots._read(phone_photos.paths[0]), np.asarray(picture()))


@pytest.fixture
def troubled_tree(tmp_path):
    """A class of good images and of files that are dangerous, damaged or too large."""
    folder = tmp_path / "tree" / "train" / "cat"
    folder.mkdir(parents=True)
    (tmp_path / "tree" / "test").mkdir()
    picture(7).resize((300, 400)).save(folder / "whole.jpg")
    picture(8).save(folder / "other.png")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "hole.jpg").write_bytes(data[:2000] + data[3000:])
    (folder / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(folder / "pipe.jpg")
    Image.new("L", (1100, 1000)).save(folder / "large.png")
    (tmp_path / "tree" / "test" / "cat").mkdir()
    picture(9).save(tmp_path / "tree" / "test" / "cat" / "one.png")
    return tmp_path / "tree"


REASONS = {
    "hole.jpg": "damaged JPEG",
    "program.jpg": "not an image file",
    "large.png": "give --max_pixels=2",
}


def test_scan_finds_all_of_it(troubled_tree, tmp_path):
    output = tmp_path / "scanned.csv"
    flags = ["--num_workers=0", "--max_pixels=1", f"--output={output}"]
    prepare.main(["scan", str(troubled_tree), *flags])
    with output.open(newline="") as file:
        broken = {row["path"].rpartition("/")[2]: row["broken"] for row in csv.DictReader(file)}
    for name, reason in broken.items():
        assert REASONS[name] in reason if name in REASONS else reason == "", name
    assert len(broken) == 6 and "pipe.jpg" not in broken  # which the walk leaves out


def test_check_finds_all_of_it(troubled_tree, tmp_path, capsys):
    report = tmp_path / "report.json"
    flags = ["--num_workers=0", "--max_pixels=1", f"--json={report}", "--dataset=folder"]
    assert check.main([f"--data_dir={troubled_tree}", *flags]) == 1
    broken = json.loads(report.read_text())["broken"]
    assert {path.rpartition("/")[2] for path in broken} == set(REASONS)
    for path, reason in broken.items():
        assert REASONS[path.rpartition("/")[2]] in reason


def test_scan_measures_and_hashes_phone_photos_upright(phone_photos, tmp_path):
    tree = tmp_path / "phone"
    picture().save(tree / "class" / "upright.png")
    prepare.main(["scan", str(tree), "--num_workers=0"])
    with (tree / "scanned.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 and {(row["width"], row["height"]) for row in rows} == {("48", "64")}
    codes = [int(row["hash"], 16) for row in rows]
    assert max((code ^ codes[-1]).bit_count() for code in codes) <= 4
