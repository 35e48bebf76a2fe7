"""Models of a hub, fetched from a small server on this machine, and never without being asked."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import eval as eval_script
import train_pair
from metric_learning.pretrained import fetch_weights

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "shop/tiny"
CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 10,
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.3, 0.3], "input_size": [3, 64, 64]},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A folder as a hub has it, of a model of timm with random weights."""
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_resnet", num_classes=10).state_dict(), folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def server(repository):
    """What huggingface.co answers for that model alone; yields its address."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            start = f"/{NAME}/resolve/main/"
            file = repository / self.path.removeprefix(start)
            if not self.path.startswith(start) or not file.is_file():
                code = "EntryNotFound" if self.path.startswith(start) else "RepoNotFound"
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{hub.server_address[1]}"
        hub.shutdown()


def run(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command with a hub of its own, whose names huggingface_hub reads on import."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "metric_learning", *words],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_fetched_model_is_used_without_a_network(server, repository, toy_flags, tmp_path):
    fetched = run(tmp_path, "fetch-weights", f"--model=hf-hub:{NAME}", HF_ENDPOINT=server)
    assert fetched.returncode == 0, fetched.stderr
    assert (
        "test_resnet" in fetched.stdout and f"use it with --model=hf-hub:{NAME}" in fetched.stdout
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    flags = [flag for flag in toy_flags if not flag.startswith(("--model=", "--image_shape="))]
    results = []
    for model in (f"hf-hub:{NAME}", f"local-dir:{repository}", str(repository)):
        file = tmp_path / "result.json"
        done = run(tmp_path, "eval", *flags, f"--model={model}", f"--json={file}", **offline)
        assert done.returncode == 0, done.stderr
        assert "1 left out" not in done.stdout and "2 left out: fc" in done.stdout  # of the classes
        results.append(json.loads(file.read_text()))
    depends = results[0]["evaluated"]["depends_on"]
    assert (
        "mean (0.4, 0.5, 0.6)" in depends["preprocessing"] and "64 px" in depends["preprocessing"]
    )
    assert [each["evaluated"]["depends_on"] for each in results] == [depends] * 3


@pytest.mark.slow
def test_a_model_that_the_hub_has_not_is_one_line(server, tmp_path):
    done = run(tmp_path, "fetch-weights", "--model=hf-hub:shop/other", HF_ENDPOINT=server)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cannot fetch hf-hub:shop/other" in done.stderr


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (fetch_weights.main, ["--model=hf-hub:tiny"], "expected hf-hub:ORG/NAME"),
        (fetch_weights.main, [f"--model=hf-hub:{NAME}", "--output=a"], "--output is not used"),
        (eval_script.main, [f"--model=hf-hub:{NAME}"], "is not on this machine"),
        (eval_script.main, ["--pretrained_model=local-dir:nowhere"], "nowhere holds no config"),
        (train_pair.main, ["--model=local-dir:nowhere", "--loss_name=eml"], "nowhere holds no"),
    ],
)
def test_what_cannot_be_had_is_one_line(main, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_no_network_is_one_line(tmp_path):
    done = run(
        tmp_path, "fetch-weights", f"--model=hf-hub:{NAME}", HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "check its name and the network" in done.stderr
