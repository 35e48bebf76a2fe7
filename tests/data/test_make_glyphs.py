"""The glyphs: layout, which typefaces have a character, determinism, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFont

import train_elem
from metric_learning.data import make_glyphs as script
from metric_learning.data.draw.glyphs import Face, choose_faces, find_faces, has_glyph
from metric_learning.reader import load_image_set

matplotlib = pytest.importorskip("matplotlib")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # DejaVu and others, Latin letters
LETTERS = "ABCDEFGHJKLM"
SMALL = [f"--fonts={FONTS}", f"--characters={LETTERS}", "--images=26", "--num_workers=0"]


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "glyphs"
    assert script.main([*SMALL, f"--dir={folder}"]) == 0
    return folder


def rows_of(folder, split):
    header, *lines = (folder / f"Ebay_{split}.txt").read_text().splitlines()
    assert header == "image_id class_id super_class_id path"
    return [line.split() for line in lines]


def files_of(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_layout_is_that_of_sop(glyphs):
    for split, classes in (("train", range(1, 7)), ("test", range(7, 13))):
        rows = rows_of(glyphs, split)
        assert [int(row[0]) for row in rows] == list(range(1, 27))
        ids, counts = np.unique([int(row[1]) for row in rows], return_counts=True)
        assert ids.tolist() == list(classes) and counts.tolist() == [5, 5, 4, 4, 4, 4]
        for row in rows:
            with Image.open(glyphs / row[3]) as image:
                assert (image.size, image.mode, image.format) == ((32, 32), "RGB", "JPEG")
        image_set = load_image_set("glyphs", glyphs, split)
        assert (len(image_set), image_set.num_classes) == (26, 6)
        assert set(image_set.super_classes.values()) == {"u00"}


def test_ink_is_dark_and_stands_in_the_middle(glyphs):
    for row in rows_of(glyphs, "train"):
        pixels = np.asarray(Image.open(glyphs / row[3]).convert("L"), float)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert border.mean() > 150 and pixels[8:24, 8:24].min() < border.mean() - 60


def test_the_same_seed_draws_the_same_bytes_with_any_number_of_processes(glyphs, tmp_path, capsys):
    script.main([*SMALL, f"--dir={tmp_path / 'again'}", "--num_workers=2"])
    script.main([*SMALL, f"--dir={tmp_path / 'other'}", "--seed=1"])
    first, again, other = map(files_of, (glyphs, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert all(first[name] != other[name] for name in first if name.endswith(".JPG"))


def test_what_is_there_is_kept_and_what_differs_replaced(glyphs, tmp_path, capsys, error_of):
    folder = tmp_path / "glyphs"
    script.main([*SMALL, f"--dir={folder}"])
    before = (folder / "Ebay_train.txt").stat().st_mtime_ns
    script.main([*SMALL, f"--dir={folder}"])
    assert "are there already" in capsys.readouterr().out
    assert (folder / "Ebay_train.txt").stat().st_mtime_ns == before
    script.main([*SMALL, f"--dir={folder}", "--images=30"])
    assert len(rows_of(folder, "test")) == 30
    (folder / "mine.txt").write_text("mine")
    assert "mine.txt" in error_of(script.main, [*SMALL, f"--dir={folder}"])
    assert (folder / "mine.txt").exists()


def cmap_of(file):
    """The characters that a font lists, by another reader."""
    fonts = pytest.importorskip("fontTools.ttLib")
    with fonts.TTFont(file) as font:
        return set(font.getBestCmap())


def test_a_face_has_what_its_font_lists():
    faces = {Path(face.file).name: face for face in find_faces([FONTS])}
    letters = "Aßжα가ش漢\u0e01Ⅷ"
    for name in ("DejaVuSans.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono.ttf"):
        listed = cmap_of(FONTS / name)
        expected = [ord(letter) in listed for letter in letters]
        assert [has_glyph(faces[name], letter) for letter in letters] == expected
        assert True in expected and False in expected
        assert not has_glyph(faces[name], " ")  # which is listed, and has no ink
    for face in faces.values():
        if "Last Resort" in face.family:  # a picture for each block
            assert not any(has_glyph(face, letter) for letter in letters)


def test_faces_are_of_different_families():
    faces = find_faces([FONTS])
    assert len(faces) > 20 and len({face.family for face in faces}) < len(faces)
    sets = [choose_faces(faces, "A", 4, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len({face.family for face in chosen}) == 4 for chosen in sets)
    assert len({face for chosen in sets for face in chosen}) > 12
    everything = choose_faces(faces, "A", 1000, np.random.default_rng(0))
    able = {face.family for face in faces if has_glyph(face, "A")}
    assert {face.family for face in everything} == able and len(everything) == len(able)


def test_locales_of_a_collection_are_one_family(monkeypatch, tmp_path):
    names = iter(["Noto Sans CJK JP", "Noto Sans CJK KR", "NanumGothic"])

    def truetype(file, size, number=0, **_):
        if number == 3:
            raise OSError
        return SimpleNamespace(getname=lambda: (next(names), "Regular"))

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    (tmp_path / "noto.ttc").touch()
    found = [face.family for face in find_faces([tmp_path])]
    assert found == ["Noto Sans CJK", "Noto Sans CJK", "NanumGothic"]


def test_korean_syllables_and_their_super_classes():
    assert len(script.SYLLABLES) == 11172 and len(script.INITIALS) == 19
    pairs = (("가", (1, "g")), ("힣", (19, "h")), ("아", (12, "silent")), ("빵", (9, "pp")))
    for character, expected in pairs:
        assert script.super_class(character) == expected
    assert script.super_class("漢") == (100 + 0x6F22 // 1024, "u1b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--characters=ABC"], "expected --characters of an even number of 4 or more"),
        (["--characters=AABB"], "got 2"),
        (["--images=11"], "expected --images of 12 or more, two for each of the 6 classes"),
        (["--size=8"], "expected --size between 16 and 512, got 8"),
        (["--kanji"], "--kanji is not used (--characters are all that is drawn)"),
        (["--images=600"], "families have U+00"),
        (["--characters=ABC가", "--images=8"], "typefaces of 0 families have U+AC00 (가)"),
        (["--fonts=/nowhere"], "typefaces of 0 families"),
        (["--seed=-1"], "expected an integer of at least 0"),
    ],
)
def test_wrong_arguments_are_one_line(flags, message, tmp_path, error_of):
    error = error_of(script.main, [*SMALL, f"--dir={tmp_path / 'glyphs'}", *flags])
    assert message in error and not (tmp_path / "glyphs").exists()


def test_lacking_typefaces_are_said_with_what_to_install(tmp_path, error_of):
    """As on a machine without any for Korean, where 5,586 classes of a half have 11 images."""
    argv = [f"--fonts={FONTS}", "--num_workers=0", f"--dir={tmp_path / 'glyphs'}"]
    error = error_of(script.main, argv)
    assert "11 are needed" in error and "apt-get install fonts-nanum " in error


def test_a_training_reads_them(glyphs, tmp_path):
    flags = ["--dataset=glyphs", f"--data_dir={glyphs}", "--model=test_resnet", "--use_gpu=False"]
    flags += ["--image_shape=3,32,32", "--train_batch_size=8", "--total_iter_num=1"]
    flags += ["--test_iter_step=0", "--display_iter_step=1"]
    folder = train_elem.main([*flags, "--num_workers=0", f"--model_save_dir={tmp_path}"])
    assert json.loads((folder / "stats.jsonl").read_text().splitlines()[0])["step"] == 1


def test_a_damaged_glyph_is_none(monkeypatch):
    face = Face(str(FONTS / "DejaVuSans.ttf"), 0, "DejaVu Sans")
    assert has_glyph(face, "A")

    def fail(*_):
        raise OSError("broken")

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getmask", fail)
    assert not has_glyph(face, "B")
