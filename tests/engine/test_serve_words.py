"""The search page of an index of a CLIP model, which words search too; and of boxes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faiss")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from starlette.testclient import TestClient  # noqa: E402

import infer  # noqa: E402
from metric_learning.engine.embed.embedder import Embedder  # noqa: E402
from metric_learning.engine.options.evaluation import settle_queries  # noqa: E402
from metric_learning.engine.serve.app import Limits, build_app  # noqa: E402
from metric_learning.engine.serve.searcher import Searcher  # noqa: E402
from metric_learning.models import build_model  # noqa: E402
from metric_learning.models.clip import PREFIX  # noqa: E402
from metric_learning.reader.sets.image_set import decode_file, decode_image  # noqa: E402

MACHINE = ["--use_gpu=False", "--num_workers=0", "--image_shape=3,32,32"]
WORDS = ["a red sofa", "two dogs, asleep"]


def client_of(index, unknown_threshold=None):
    """A client of the page of an index, which answers in this process."""
    search_index, work = settle_queries(str(index), None, num_workers=0, batch_size=1)
    embedder = Embedder.of(work)
    searcher = Searcher(str(index), search_index, embedder, unknown_threshold)

    def decode(data):
        return decode_image(data, "the upload", embedder.preprocessing.decoding)

    app = build_app(searcher, decode, Limits(10**6, 2), None)
    return TestClient(app, base_url="http://localhost:8000")


@pytest.fixture(scope="module")
def clip_index(tiny_clips, toy_tree, tmp_path_factory):
    """An index with classes and a threshold, of a random model of both towers."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny").state_dict(), folder / "clip.pt")
    model = [f"--model={PREFIX}tiny", f"--pretrained_model={folder / 'clip.pt'}"]
    data = ["--dataset=folder", f"--data_dir={toy_tree}", "--batch_size=16"]
    threshold = "--unknown_threshold=0.99999"
    infer.main([*MACHINE, *model, *data, f"--index={folder / 'a.index'}", threshold])
    return folder / "a.index"


@pytest.fixture(scope="module")
def clip_page(clip_index):
    return client_of(clip_index)


def test_words_find_what_infer_finds(clip_page, clip_index):
    assert clip_page.get("/api/about").json()["words"] is True
    weights = f"--pretrained_model={clip_index.parent / 'clip.pt'}"
    ask = [*MACHINE[:1], weights, f"--index={clip_index}", "--topk=16"]
    for words, right in zip(
        WORDS, infer.main([*ask, *(f"--query_text={w}" for w in WORDS)]), strict=True
    ):
        answer = clip_page.get("/api/search", params={"text": words, "k": 16}).json()
        assert answer["none"] is False and answer["threshold"] is None  # it is one of images
        for one, expected in zip(answer["neighbours"], right["neighbours"], strict=True):
            assert one["class_name"] == expected["class_name"]
            assert one["cosine"] == pytest.approx(expected["cosine"], abs=1e-5)
            assert one["thumbnail"] == f"/api/images/1/{expected['row']}"
    assert clip_page.get(answer["neighbours"][0]["thumbnail"]).status_code == 200


def test_words_search_one_class(clip_page):
    asked = {"text": WORDS[0], "k": 9, "class_name": "class_7"}
    found = clip_page.get("/api/search", params=asked).json()["neighbours"]
    assert [one["class_name"] for one in found] == ["class_7"] * 4


def test_words_have_the_threshold_that_is_given_alone(clip_index, toy_tree):
    page = client_of(clip_index, 0.999)
    answer = page.get("/api/search", params={"text": WORDS[0]}).json()
    assert answer["none"] is True and answer["threshold"] == 0.999 and answer["neighbours"]
    image = (toy_tree / "test" / "class_8" / "1.png").read_bytes()
    answer = page.post("/api/search", content=image).json()
    assert answer["none"] is False and answer["neighbours"][0]["class_name"] == "class_8"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("", 422, "at least 1"),
        ("a" * 501, 422, "at most 500"),
        ("word " * 99, 400, "reads at most"),
    ],
)
def test_wrong_words_are_refused(clip_page, words, status, said):
    answer = clip_page.get("/api/search", params={"text": words})
    assert answer.status_code == status and said in str(answer.json()["detail"])


def test_boxes_are_shown_alone(toy_tree, tmp_path):
    photo = toy_tree / "test" / "class_8" / "1.png"
    boxes = [(0, 0, 20, 32), (20, 0, 40, 32), (0, 0, 40, 16)]
    lines = [",".join(map(str, [photo, *box])) for box in boxes]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x_1,y_1,x_2,y_2", *lines]) + "\n")
    torch.save(build_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    model = ["--model=test_resnet", f"--pretrained_model={tmp_path / 'weights.pth'}"]
    images = f"--images={tmp_path / 'boxes.csv'}"
    infer.main([*MACHINE, *model, images, f"--index={tmp_path / 'a.index'}"])
    page = client_of(tmp_path / "a.index")

    upload = io.BytesIO()
    Image.fromarray(decode_file(str(photo), box=boxes[1])).save(upload, "PNG")
    found = page.post("/api/search?k=3", content=upload.getvalue()).json()["neighbours"]
    assert found[0]["box"] == [*boxes[1]] and found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    for one in found:
        for size in ("small", "large"):
            data = page.get(f"{one['thumbnail']}?size={size}").content
            shown = np.asarray(Image.open(io.BytesIO(data)), np.float64)
            expected = decode_file(str(photo), box=one["box"]).astype(np.float64)
            assert shown.shape == expected.shape
            assert abs(shown - expected).mean() < 25  # a JPEG of noise
    for wrong in (3, -1, 2**63, 10**30):
        assert page.get(f"/api/images/1/{wrong}").status_code == 404
