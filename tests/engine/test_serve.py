"""metric-learning serve: what it answers, whom, and how it starts and ends."""

import io
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from serving import make_index, served  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

import infer  # noqa: E402
from benchmarks.speed.serve import ask_all, describe  # noqa: E402
from metric_learning.engine.serve import __main__ as command  # noqa: E402
from metric_learning.engine.serve.decoder import Decoders  # noqa: E402
from metric_learning.engine.serve.guard import Guard  # noqa: E402
from metric_learning.reader import ImageError  # noqa: E402
from metric_learning.reader.sets.image_set import Decoding  # noqa: E402

TOKEN = "a-token-of-twenty-letters"


@pytest.fixture(scope="module")
def index(tmp_path_factory, toy_tree):
    return make_index(tmp_path_factory.mktemp("served"), toy_tree)


@pytest.fixture(scope="module")
def client(index):
    with served(index, "--max_upload=1", "--max_pixels=1") as (address, _):
        yield httpx.Client(base_url=address, timeout=60)


@pytest.fixture(scope="module")
def expected(index, toy_tree):
    """What infer.py answers to each image of a class: path -> neighbours."""
    flags = ["--use_gpu=False", f"--pretrained_model={index.parent / 'weights.pth'}"]
    query = f"--query={toy_tree / 'test' / 'class_8'}"
    answers = infer.main([*flags, f"--index={index}", query, "--topk=16"])
    return {answer["path"]: answer["neighbours"] for answer in answers}


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def test_answers_are_those_of_infer(client, expected):
    for path, neighbours in expected.items():
        with open(path, "rb") as file:
            answer = client.post("/api/search?k=16", content=file.read()).json()
        found = answer["neighbours"]
        assert [one["rank"] for one in found] == list(range(1, 17))
        for one, right in zip(found, neighbours, strict=True):
            assert one["class_name"] == right["class_name"]
            assert one["cosine"] == pytest.approx(right["cosine"], abs=1e-5)
            assert one["thumbnail"] == f"/api/images/1/{right['row']}"


def test_a_class_alone_is_searched(client, expected):
    path, neighbours = next(iter(expected.items()))
    with open(path, "rb") as file:
        data = file.read()
    found = client.post("/api/search?k=3&class_name=class_6", content=data).json()["neighbours"]
    right = [one for one in neighbours if one["class_name"] == "class_6"][:3]
    assert [one["class_name"] for one in found] == ["class_6"] * 3
    assert [one["cosine"] for one in found] == pytest.approx([n["cosine"] for n in right], abs=1e-5)
    refused = client.post("/api/search?class_name=nothing", content=data)
    assert refused.status_code == 400 and "no such class" in refused.json()["detail"]


def test_no_path_leaves_the_server(client, expected, toy_tree, index):
    path = next(iter(expected))
    with open(path, "rb") as file:
        answers = [client.post("/api/search", content=file.read())]
    addresses = ("/", "/search.js", "/search.css", "/api/about", "/openapi.json", "/api/images/1/0")
    answers += [client.get(address) for address in addresses]
    answers += [client.post("/api/search", content=b"no image"), client.get("/nothing")]
    secrets = (str(toy_tree), str(index), ".png", "weights.pth")
    for answer in answers:
        head = " ".join(f"{name}: {value}" for name, value in answer.headers.items())
        assert not any(secret.encode() in answer.content for secret in secrets), answer.url
        assert not any(secret in head for secret in secrets)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_thumbnails_are_small_jpegs(client):
    for size, most in (("small", 256), ("large", 768)):
        answer = client.get(f"/api/images/1/3?size={size}")
        image = Image.open(io.BytesIO(answer.content))
        assert image.format == "JPEG" and max(image.size) <= most
    for wrong in ("1/16", "1/-1", "2/0", "1/0?size=huge", "1/x"):
        assert client.get(f"/api/images/{wrong}").status_code in (404, 422)


def test_what_is_served_is_told(client):
    about = client.get("/api/about").json()
    assert about["images"] == 16 and about["classes"] == [f"class_{n}" for n in range(6, 10)]
    assert about["words"] is False and about["largest_upload"] == 10**6
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/api/search", "/api/about", "/api/images/{version}/{row}"}


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "found none"),
        (b"GIF89a", 400, "cannot read the upload"),
        (bytes(10**6 + 1), 413, "1,000,000 bytes"),
        (encode(np.zeros((1001, 1001, 3))), 400, "1 million allowed"),
        (encode(np.zeros((50, 50, 3)))[:-30], 400, "cannot read the upload"),
    ],
    ids=("empty", "no image", "many bytes", "many pixels", "truncated"),
)
def test_wrong_uploads_are_refused(client, data, status, words):
    for content in (data, iter([data[:99], data[99:]])):  # with a length, and in chunks
        answer = client.post("/api/search", content=content)
        assert answer.status_code == status and words in answer.json()["detail"]


def test_words_need_a_clip_model(client):
    answer = client.get("/api/search?text=a+dog")
    assert answer.status_code == 400 and "CLIP" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["k=0", "k=101", "k=x"])
def test_wrong_numbers_of_neighbours_are_refused(client, query):
    data = encode(np.zeros((9, 9, 3)))
    assert client.post(f"/api/search?{query}", content=data).status_code == 422


def test_several_clients_are_answered_at_once(client, expected):
    images = [Path(path).read_bytes() for path in expected]
    answers = ask_all(client.base_url.netloc.decode(), images, clients=12, each=3)
    assert len(answers) == 36
    assert describe(answers, 1.0).startswith("36 requests, 0 errors, 36.0 a second, p50 ")


def test_an_index_that_changes_is_taken_up(index, toy_tree, tmp_path):
    file = shutil.copy(index, tmp_path / "own.index")
    data = (toy_tree / "train" / "class_0" / "0.png").read_bytes()
    with served(file, "--file_names=True") as (address, process):
        ask = lambda: httpx.post(f"{address}/api/search?k=1", content=data, timeout=60)  # noqa: E731
        assert ask().json()["neighbours"][0]["class_name"] != "class_0"
        weights = f"--pretrained_model={index.parent / 'weights.pth'}"
        added = f"--add={toy_tree / 'train' / 'class_0'}"
        infer.main(["--use_gpu=False", weights, f"--index={file}", added])
        found = ask().json()["neighbours"][0]
        assert (found["class_name"], found["name"]) == ("class_0", "0.png")
        assert found["thumbnail"] == "/api/images/2/16"
        assert httpx.get(f"{address}/api/images/2/16").status_code == 200

        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
        assert process.returncode == 130 and error == "interrupted\n"
        assert out.splitlines()[-1].endswith("the search page has ended")


def ask_guard(token, path="/", **headers):
    guard = Guard(PlainTextResponse("inside"), token)
    client = TestClient(guard, base_url="http://localhost:8000", follow_redirects=False)
    return client.get(path, headers=headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8000"}, 200),
    ],
)
def test_without_a_token_only_this_machine_is_let_in(headers, status):
    assert ask_guard(None, **headers).status_code == status


def test_with_a_token_who_has_it_is_let_in():
    assert ask_guard(TOKEN).status_code == 401
    assert ask_guard(TOKEN, authorization=f"Bearer {TOKEN}x").status_code == 401
    assert ask_guard(TOKEN, "/api/about", host="any", authorization=f"Bearer {TOKEN}").text
    assert ask_guard(TOKEN, "/api/about?token=" + TOKEN).status_code == 401  # of the page alone
    answer = ask_guard(TOKEN, f"/?token={TOKEN}")
    cookie = answer.headers["set-cookie"]
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ask_guard(TOKEN, cookie=cookie.partition(";")[0]).text == "inside"
    for wrong in ("metric_learning_token=x", "=;;\xe9", "metric_learning_token"):
        assert ask_guard(TOKEN, cookie=wrong.encode("latin1")).status_code == 401


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "expected --index=FILE"),
        (["--index={index}", "--host=0.0.0.0"], "give --token=TEXT"),
        (["--index={index}", "--token=short"], "16 or more letters"),
        (["--index={index}", "--host=no.such.invalid", f"--token={TOKEN}"], "cannot listen at"),
        (["--index={index}", "--port=99999"], "a --port of 0 to 65535"),
        (["--index={index}.not"], "No such file"),
        (["--index={weights}"], "no search index"),
        (["--index={index}", "--pretrained_model={index}"], ""),
        (["--index={index}", "--pretrained_model={index}.not"], "weights file not found"),
        (["--index={index}", "--topk=3"], "unknown flag"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(flags, words, index, error_of):
    texts = {"index": index, "weights": index.parent / "weights.pth"}
    given = ["--port=0", *(flag.format(**texts) for flag in flags)]
    given = given[1:] if any("--port" in flag for flag in flags) else given
    assert words in error_of(command.main, given)


def test_a_port_that_is_in_use_is_refused(index, error_of):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = error_of(command.main, [f"--index={index}", f"--port={port}"])
    assert f"--port={port}" in words and "in use" in words


def test_an_index_of_weights_that_are_gone_asks_for_them(index, tmp_path, error_of):
    folder = tmp_path / "moved"
    folder.mkdir()
    weights = shutil.move(index.parent / "weights.pth", folder / "weights.pth")
    try:
        words = error_of(command.main, [f"--index={index}", "--port=0"])
    finally:
        shutil.move(weights, index.parent / "weights.pth")
    assert "say where those weights are by --pretrained_model" in words


def test_an_image_that_takes_too_long_ends_its_decoder_alone():
    decode = Decoders(1, Decoding(), 30)
    try:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
        assert (decode(encode(pixels)) == pixels).all()
        with pytest.raises(ImageError, match="cannot read the upload"):
            decode(b"\x89PNG")
        decode.seconds = 0.001
        with pytest.raises(ImageError, match="more than 0.001 seconds"):
            decode(encode(np.zeros((6000, 6000, 3)), compress_level=1))
        decode.seconds = 30
        assert (decode(encode(pixels)) == pixels).all()
    finally:
        decode.close()
