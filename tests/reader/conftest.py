"""Real data of the shared folder, unpacked once, and small trees in every data set's layout."""

import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_archive(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"needs {name} in the folder of real data beside the checkout")
    return path


@pytest.fixture(scope="session")
def real_cub(tmp_path_factory) -> Path:
    """CUB's 50 classes: all lists, and the images of three of the classes."""
    folder = tmp_path_factory.mktemp("cub")
    kept = ("001.", "010.", "050.")
    with tarfile.open(shared_archive("CUB_200_2011_first50_short160.tar")) as file:
        for member in file:
            parts = member.name.split("/")
            if member.isfile() and (len(parts) == 2 or parts[2].startswith(kept)):
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.extractfile(member).read())
    return folder / "CUB_200_2011"


@pytest.fixture(scope="session")
def real_omniglot(tmp_path_factory) -> Path:
    """All names of Omniglot's background set; only the first drawing of a character has bytes."""
    folder = tmp_path_factory.mktemp("omniglot")
    with zipfile.ZipFile(shared_archive("omniglot_images_background.zip")) as file:
        for info in file.infolist():
            if not info.is_dir():
                target = folder / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                first = info.filename.endswith("_01.png")
                target.write_bytes(file.read(info) if first else b"")
    return folder


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory) -> Path:
    """Ten images of each class and split of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar10")
    with zipfile.ZipFile(shared_archive("cifar10_jpg.zip")) as file:
        counts: dict[str, int] = {}
        for info in file.infolist():
            parent = info.filename.rpartition("/")[0]
            counts[parent] = counts.get(parent, 0) + 1
            if counts[parent] <= 10 and not info.is_dir():
                file.extract(info, folder)
    return folder / "cifar10"


@pytest.fixture
def draw():
    """A function that writes one small picture whose colour follows from `seed`."""

    def draw_image(path: Path, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (seed % 256, seed // 256 % 256, 100)).save(path)
        return path

    return draw_image


@pytest.fixture
def make_sop(tmp_path, draw):
    """A function that writes a data set in SOP's layout: train classes 1-3, test classes 4-6."""

    def write(images_per_class: int = 2) -> Path:
        folder = tmp_path / "sop"
        seed = 0
        for split, classes in (("train", (1, 2, 3)), ("test", (4, 5, 6))):
            lines = ["image_id class_id super_class_id path"]
            for class_id in classes:
                for view in range(images_per_class):
                    seed += 1
                    name = f"mug_final/{class_id} view {view}.png"
                    draw(folder / name, seed)
                    lines.append(f"{seed} {class_id} 1 {name}")
            (folder / f"Ebay_{split}.txt").write_text("\n".join(lines))
        return folder

    return write
