"""The wheel in an environment that has its dependencies alone: it trains, evaluates, answers."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command, folder, **environment):
    """Run a command in a folder outside the checkout, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the commands of an environment into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(
        ".*", "build", "dist", "site", "output", "tests", "*.egg-info"
    )
    source = shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}")
    run(*pip, *build, source, folder=folder)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    paths = run(python, "-c", "import site; print(site.getsitepackages()[0])", folder=folder)
    packages = Path(paths.strip())
    # The dependencies are those of this environment; its own checkout is not among them.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = folder.glob("*.whl")
    run(*pip, f"--python={python}", "install", "--quiet", "--no-deps", wheel, folder=folder)
    return python.parent, packages


def test_an_installed_wheel_works_and_writes_nothing_among_the_packages(installed, tmp_path):
    commands, packages = installed
    before = sorted(packages.rglob("*"))
    own = {"folder": tmp_path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = commands / "metric-learning"
    assert run(command, "--version", **own) == "metric-learning 0.2.0\n"
    run(command, "make-demo", "--num_classes=10", "--views=4", "--size=32", **own)
    tiny = ["--dataset=demo", "--model=test_resnet", "--image_shape=3,32,32", "--num_workers=0"]
    short = ["--total_iter_num=1", "--train_batch_size=8", "--run_name=run", "--use_gpu=False"]
    run(command, "train-elem", *tiny, *short, **own)
    weights = "output/run/last.pt"
    evaluated = run(command, "eval", f"--pretrained_model={weights}", "--num_workers=0", **own)
    assert "End test 20, test_recall" in evaluated
    image = next((tmp_path / "data" / "demo").rglob("*.JPG"))
    program = (
        "import metric_learning, sys; "
        f"model = metric_learning.load({weights!r}); "
        f"print(metric_learning.__file__, model([{str(image)!r}]).shape)"
    )
    answer = run(commands / "python", "-c", program, **own).splitlines()[-1]
    assert answer.startswith(str(packages)) and answer.endswith("(1, 96)")
    planned = run(command, "leaderboard", "--board=sop_reference", "--dry_run", **own)
    assert "--loss_name=arcmargin" in planned
    run(command, "report", "output/run", **own)
    assert (tmp_path / "output" / "run" / "report" / "index.html").is_file()
    compiled = {path for path in packages.rglob("*") if "__pycache__" in path.parts}
    assert set(packages.rglob("*")) - compiled == set(before) - compiled
    assert not [path for path in compiled if path.suffix not in ("", ".pyc")]
