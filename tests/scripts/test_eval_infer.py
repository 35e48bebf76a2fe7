"""eval.py and infer.py on checkpoints of a toy tree."""

import json
import re

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.models import build_model, load_weights
from metric_learning.reader import load_index
from metric_learning.reader.transforms import reference_eval
from metric_learning.retrieval import evaluate


@pytest.fixture(scope="module")
def runs(toy_flags, tmp_path_factory):
    """Run folders of both stages; stage 2 starts from stage 1."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*toy_flags, "--train_batch_size=8", "--total_iter_num=2", f"--model_save_dir={folder}"]
    elem = train_elem.main([*flags, "--loss_name=arcmargin"])
    pair = train_pair.main([*flags, "--loss_name=eml", f"--pretrained_model={elem / 'last.pt'}"])
    return {"elem": elem, "pair": pair}


@pytest.fixture(scope="module")
def expected(runs, toy_tree):
    """Embeddings of the test images by the library alone, image after image."""
    model = build_model("ResNet18")
    load_weights(model, runs["pair"] / "last.pt")
    model.eval()
    index = load_index("folder", toy_tree, "test")
    with torch.inference_mode():
        rows = [
            model(torch.from_numpy(reference_eval(index.read_image(i), 32))[None])[0].numpy()
            for i in range(len(index))
        ]
    return index, np.stack(rows)


@pytest.mark.parametrize("name", ["last.pt", "last.safetensors"])
def test_a_checkpoint_alone_is_enough(runs, expected, tmp_path, capsys, name):
    index, embeddings = expected
    result_file = tmp_path / "new" / "result.json"
    result = eval_script.main(
        [f"--pretrained_model={runs['pair'] / name}", "--ks=2,4", f"--json={result_file}"]
        + ["--use_gpu=False", "--num_workers=0"]
    )
    metrics = evaluate(embeddings, index.labels, (1, 2, 4, 10))
    assert {key: result[key] for key in metrics} == pytest.approx(metrics)
    assert json.loads(result_file.read_text())["recall@1"] == result["recall@1"]
    assert result["evaluated"]["flags"]["model"] == "ResNet18"
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.search(rf"\] End test 16, test_recall {result['recall@1']:.5f}$", last)


def test_the_last_test_of_the_training_is_eval_s(runs):
    records = map(json.loads, (runs["pair"] / "stats.jsonl").read_text().splitlines())
    last = [record for record in records if record["kind"] == "test"][-1]
    result = eval_script.main([f"--pretrained_model={runs['pair'] / 'last.pt'}", "--num_workers=0"])
    assert last["recall@1"] == result["recall@1"]


def test_the_training_split_can_be_evaluated(runs):
    result = eval_script.main(
        [f"--pretrained_model={runs['pair'] / 'last.pt'}", "--split=train", "--num_workers=0"]
    )
    assert result["queries"] == 24


def test_untrained_weights_are_a_baseline_of_their_seed(toy_flags):
    results = [
        eval_script.main([*toy_flags, "--pretrained_model=random", f"--seed={seed}"])["map@r"]
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1] != results[2]


def test_queries_search_the_gallery_of_inshop(runs, toy_tree, tmp_path):
    images = [("train", path) for path in sorted((toy_tree / "train").glob("*/*.png"))]
    for number, path in enumerate(sorted((toy_tree / "test").glob("*/*.png"))):
        images.append(("query" if number % 4 == 0 else "gallery", path))
    (tmp_path / "img").symlink_to(toy_tree)
    lines = [
        f"img/{path.relative_to(toy_tree)} id_{path.parent.name[6:]:0>8} {role}"
        for role, path in images
    ]
    header = f"{len(lines)}\nimage_name item_id evaluation_status\n"
    (tmp_path / "list_eval_partition.txt").write_text(header + "\n".join(lines) + "\n")
    result = eval_script.main(
        [f"--pretrained_model={runs['pair'] / 'last.pt'}", "--dataset=inshop"]
        + [f"--data_dir={tmp_path}", "--num_workers=0"]
    )
    assert (result["queries"], result["gallery"]) == (4, 12)


def test_infer_dumps_the_features_of_a_data_set(runs, expected, tmp_path, capsys):
    index, embeddings = expected
    folder = infer.main(
        [f"--pretrained_model={runs['pair'] / 'last.pt'}", f"--output_dir={tmp_path / 'dump'}"]
        + ["--batch_size=3"]
    )
    features = np.load(folder / "features.npy")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, embeddings, rtol=1e-4, atol=1e-5)
    assert (folder / "paths.txt").read_text().splitlines() == index.paths
    labels = [int(line) for line in (folder / "labels.txt").read_text().splitlines()]
    assert labels == index.labels.tolist()
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["images"], meta["dimensions"], meta["checkpoint"]["loss"]) == (16, 512, "eml")
    out = capsys.readouterr().out
    assert re.findall(r"^Test-(\d+)-feature: \[", out, re.MULTILINE) == [str(i) for i in range(16)]
    assert "-score" not in out


@pytest.mark.parametrize("loss_name", ["softmax", "arcmargin"])
def test_infer_gives_class_scores_with_a_stage_1_checkpoint(
    toy_flags, toy_tree, tmp_path, capsys, loss_name
):
    run = train_elem.main(
        [*toy_flags, f"--loss_name={loss_name}", "--train_batch_size=8", "--total_iter_num=1"]
        + ["--test_iter_step=0", f"--model_save_dir={tmp_path}"]
    )
    image = toy_tree / "train" / "class_3" / "0.png"
    folder = infer.main(
        [f"--pretrained_model={run / 'last.pt'}", f"--images={image}"]
        + [f"--output_dir={tmp_path / 'dump'}"]
    )
    feature = torch.from_numpy(np.load(folder / "features.npy"))
    head = torch.load(run / "last.pt", weights_only=True)["criterion"]
    if loss_name == "arcmargin":
        unit = torch.nn.functional.normalize
        scores = 80 * unit(feature) @ unit(head["weight"]).T
    else:
        scores = feature @ head["weight"].T + head["bias"]
    score, label = scores[0].max(0)
    line = re.search(r"^Test-0-score: \[(.+)\], class \[(\d+)\]$", capsys.readouterr().out, re.M)
    assert float(line[1]) == pytest.approx(score.item(), rel=1e-4) and int(line[2]) == label
    assert not (folder / "labels.txt").exists()


def test_infer_takes_all_images_below_a_folder(runs, toy_tree, tmp_path):
    folder = infer.main(
        [f"--pretrained_model={runs['pair'] / 'last.pt'}", f"--images={toy_tree / 'test'}"]
        + [f"--output_dir={tmp_path}"]
    )
    paths = (folder / "paths.txt").read_text().splitlines()
    assert paths == sorted(map(str, (toy_tree / "test").glob("*/*.png")))
    assert np.load(folder / "features.npy").shape == (16, 512)
