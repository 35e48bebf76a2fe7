"""infer.py --query --html: the answers as one page that needs nothing else."""

import re

import pytest

import infer

pytest.importorskip("faiss")

MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture
def file(toy_tree, weights, tmp_path):
    found = tmp_path / "toy.index"
    flags = [*MACHINE, "--model=test_resnet", "--image_shape=3,32,32", f"--index={found}"]
    infer.main([*flags, f"--pretrained_model={weights}", f"--images={toy_tree / 'test'}"])
    return found


def test_a_page_shows_queries_and_neighbours(file, toy_tree, weights, tmp_path):
    query, page = toy_tree / "test" / "class_8", tmp_path / "new" / "answers.html"
    asked = [*MACHINE, f"--pretrained_model={weights}", f"--index={file}", f"--html={page}"]
    answers = infer.main([*asked, f"--query={query}", "--topk=3"])
    text = page.read_text("utf-8")
    assert text.count('<section class="answer">') == 4
    assert text.count("<img ") == 4 + 12 == text.count("data:image/jpeg;base64,")
    assert re.findall(r'(?:src|href)="(?!data:)', text) == [] and "://" not in text
    assert "default-src 'none'; img-src data:" in text
    for answer in answers:
        assert all(f"{found['cosine']:.4f}" in text for found in answer["neighbours"])

    infer.main([*asked, f"--query={query / '0.png'}"])  # which replaces it
    assert page.read_text("utf-8").count('<section class="answer">') == 1


def test_names_are_escaped_and_missing_images_have_no_picture(toy_tree, weights, tmp_path):
    folder = tmp_path / "<b>&"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((toy_tree / "test" / "class_8" / "0.png").read_bytes())
    flags = [*MACHINE, f"--pretrained_model={weights}", f"--index={tmp_path / 'a.index'}"]
    made = ["--model=test_resnet", "--image_shape=3,32,32", f"--images={folder}"]
    infer.main([*flags, *made])
    (folder / "b.png").unlink()
    page = tmp_path / "a.html"
    infer.main([*flags, f"--query={folder / 'a.png'}", "--topk=2", f"--html={page}"])
    text = page.read_text("utf-8")
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text and "not here" in text


@pytest.mark.parametrize("name", ["toy.index", "other.html", "same"])
def test_no_other_file_is_replaced(name, file, toy_tree, weights, tmp_path, error_of):
    (tmp_path / "other.html").write_text("<p>of the user</p>")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    page = tmp_path / name
    flags = [*MACHINE, f"--pretrained_model={weights}", f"--index={file}", f"--html={page}"]
    if name == "same":
        flags += [f"--json={page}"]
    words = error_of(infer.main, [*flags, f"--query={toy_tree / 'test'}"])
    assert "name one file" in words or "nothing is replaced" in words
    assert all(path.read_bytes() == data for path, data in before.items())


def test_without_a_query_it_is_refused(error_of, toy_tree, tmp_path):
    flags = ["--pretrained_model=random", f"--images={toy_tree}", f"--html={tmp_path / 'a.html'}"]
    assert "--html is not used" in error_of(infer.main, flags)
