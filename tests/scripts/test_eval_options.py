"""What eval.py offers beside Recall@K: features kept, comparison, re-ranking, tables, torchrun."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as eval_script
import infer
import train_elem
from metric_learning.losses import build_loss
from metric_learning.reader import load_index
from metric_learning.retrieval import evaluate, score_queries
from metric_learning.retrieval.clustering import cluster_scores
from metric_learning.retrieval.metrics import score_similarities, summarise
from metric_learning.retrieval.rerank import parse_rerank, reranked_similarities
from metric_learning.retrieval.significance import class_interval
from metric_learning.retrieval.verification import verification_scores
from metric_learning.retrieval.whitening import fit_whitening

ROOT = Path(__file__).resolve().parents[2]
MACHINE = ["--use_gpu=False", "--num_workers=0"]


@pytest.fixture(scope="module")
def runs(toy_flags, tmp_path_factory):
    """Checkpoints of two stage-1 runs on the toy tree."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*toy_flags, "--train_batch_size=6", f"--model_save_dir={folder}", "--test_iter_step=0"]
    return [
        train_elem.main(
            [*flags, f"--total_iter_num={steps}", f"--run_name={steps}", "--freeze_bn=True"]
        )
        / "last.pt"
        for steps in (1, 3)
    ]


@pytest.fixture(scope="module")
def embedded(runs, tmp_path_factory):
    """Features that eval.py kept of the first run: test split, train split, with their indexes."""
    folder = tmp_path_factory.mktemp("features")
    found = {}
    for split in ("test", "train"):
        file = folder / f"{split}.npy"
        result = run(runs[0], f"--features={file}", f"--split={split}")
        flags = result["evaluated"]["flags"]
        found[split] = np.load(file), load_index("folder", flags["data_dir"], split)
    return found


def run(checkpoint, *flags):
    return eval_script.main([f"--pretrained_model={checkpoint}", *MACHINE, *map(str, flags)])


@pytest.fixture
def fails(error_of):
    """Run eval.py, which must fail, and return its one line."""
    return lambda *flags: error_of(eval_script.main, [*MACHINE, *flags])


def test_all_metrics_are_those_of_the_library(runs, embedded, capsys):
    features, index = embedded["test"]
    flags = ("--precision_ks=1,3", "--verification=True", "--clustering=True", "--ks=2")
    result = run(runs[0], *flags)
    expected = evaluate(features, index.labels, (1, 2, 10), precision_ks=(1, 3))
    expected |= verification_scores(features, index.labels)
    expected |= cluster_scores(features, index.labels)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    log = capsys.readouterr().out
    for words in (
        "recall@2",
        "precision@3",
        "recall@1 has no interval: it takes 6 classes of queries, here are 4",
        "recall@1_chance",
        "minp",
        "auc",
        "eer",
        "nmi",
    ):
        assert words in log


def test_interval_and_chance_stand_beside_the_recall(runs, embedded, capsys):
    features, index = embedded["train"]  # of six classes
    scores = score_queries(features, index.labels, (1,)).columns["recall@1"]
    result = run(runs[0], "--split=train")
    assert result["query_classes"] == 6 and result["recall@1_chance"] == pytest.approx(3 / 23)
    low, high = class_interval(scores, index.labels)
    assert result.get("recall@1_interval", [low, high]) == [low, high]
    assert ("recall@1_interval" in result) == (low < high)
    log = capsys.readouterr().out
    assert "recall@1_chance 0.13043, recall@10_chance" in log


def test_what_makes_figures_mean_little_is_warned_about(runs, capsys):
    run(runs[0], "--image_shape=3,40,40")
    log = capsys.readouterr().out
    for words in (
        "warning: 4 test classes: with fewer than 10 every figure is high",
        "warning: 16 queries with a positive: one of them is 6.2% of a figure",
        "warning: K is half of the 15 images of the gallery or more; chance has recall@10 0.97802",
        "was trained on other inputs: size 32 px there, 40 px here",
    ):
        assert words in log
    run(runs[0])
    assert "other inputs" not in capsys.readouterr().out


def test_expected_ties(runs, embedded):
    features, index = embedded["test"]
    expected = evaluate(features, index.labels, (1, 10), ties="expected")
    result = run(runs[0], "--ties=expected")
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_the_distance_of_raw_features_is_told(runs, embedded, tmp_path, capsys):
    features, index = embedded["test"]
    kept = tmp_path / "kept.npy"
    results = [
        run(runs[0], f"--distance={name}", f"--features={kept}", f"--json={tmp_path}/{name}.json")
        for name in ("cosine", "euclidean")
    ]
    for name, result in zip(("cosine", "euclidean"), results, strict=True):
        expected = evaluate(features, index.labels, (1, 10), distance=name)
        assert {key: result[key] for key in expected} == pytest.approx(expected)
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert written["evaluated"]["flags"]["distance"] == name
    assert results[0]["map"] != results[1]["map"]
    line = "images are ranked by the euclidean distance of embeddings as they are"
    assert capsys.readouterr().out.count(line) == 1


def test_compare_ranks_by_the_distance(runs, capsys):
    flags = ["--distance=euclidean"]
    result = eval_script.main(["--compare", *map(str, runs), *MACHINE, *flags])
    assert capsys.readouterr().out.count("ranked by the euclidean distance") == 1
    assert result["second"]["map"] == run(runs[1], *flags)["map"] != run(runs[1])["map"]


@pytest.mark.parametrize("rerank", ["qe:k=2,alpha=1", "dba:k=3", "kreciprocal:k1=5,k2=2"])
def test_rerank(runs, embedded, rerank):
    features, index = embedded["test"]
    chunks = reranked_similarities(parse_rerank(rerank), features)
    expected = summarise(score_similarities(chunks, index.labels, (1, 10)))
    result = run(runs[0], f"--rerank={rerank}")
    assert {name: result[name] for name in expected} == pytest.approx(expected)


@pytest.fixture(scope="module")
def mixed(toy_tree, embedded, tmp_path_factory):
    """A CSV file of the test images, a third of which search and are searched, with their rows."""
    features, index = embedded["test"]
    numbers = np.arange(len(index))
    is_query, is_gallery = numbers % 3 < 2, numbers % 3 > 0
    file = tmp_path_factory.mktemp("mixed") / "mixed.csv"
    lines = ["path,label,split,is_query,is_gallery"]
    lines += [
        f"{path},{label},test,{int(query)},{int(gallery)}"
        for path, label, query, gallery in zip(
            index.paths, index.labels, is_query, is_gallery, strict=True
        )
    ]
    file.write_text("\n".join(lines) + "\n")
    flags = ["--dataset=csv", f"--csv={file}", f"--data_dir={toy_tree}"]
    return flags, features.astype(np.float64), index.labels, is_query, is_gallery


def test_verification_where_some_queries_are_in_the_gallery(runs, mixed):
    flags, features, labels, is_query, is_gallery = mixed
    result = run(runs[0], *flags, "--verification=True")
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [
        (float(unit[i] @ unit[j]), labels[i] == labels[j])
        for i in np.flatnonzero(is_query)
        for j in np.flatnonzero(is_gallery)
        if i != j
    ]
    same = np.array([cosine for cosine, is_same in pairs if is_same])
    other = np.array([cosine for cosine, is_same in pairs if not is_same])
    assert (result["positive_pairs"], result["negative_pairs"]) == (len(same), len(other))
    assert result["auc"] == pytest.approx((same[:, None] > other).mean(), abs=1e-3)


@pytest.mark.parametrize("rerank", ["qe:k=2,alpha=1", "dba:k=2", "kreciprocal:k1=5,k2=2"])
def test_rerank_where_some_queries_are_in_the_gallery(runs, mixed, rerank):
    """Each query alone searches the others of the gallery, by the similarities of all to all."""
    flags, features, labels, is_query, is_gallery = mixed
    parsed = parse_rerank(rerank)
    is_own = np.flatnonzero(is_query)[:, None] == np.flatnonzero(is_gallery)
    own_rows = np.where(is_own.any(1), is_own.argmax(1), -1)
    if parsed.method == "kreciprocal":
        chunks = list(reranked_similarities(parsed, features.astype(np.float32)))
        similarities = chunks[0][1][is_query][:, is_gallery]
    else:
        sets = [features[role].astype(np.float32) for role in (is_query, is_gallery)]
        chunks = list(reranked_similarities(parsed, *sets, own_rows=own_rows))
        similarities = chunks[0][1]

    found = []
    for row, own, label in zip(similarities, own_rows, labels[is_query], strict=True):
        kept = np.arange(len(row)) != own
        is_positive = labels[is_gallery][kept] == label
        if is_positive.any():
            found.append(row[kept][is_positive].max() > row[kept][~is_positive].max())
    result = run(runs[0], *flags, f"--rerank={rerank}")
    assert result["recall@1"] == pytest.approx(np.mean(found))
    assert result["queries"] == len(found)


@pytest.mark.parametrize(("whiten", "dim"), [("3", 3), ("all", None)])
def test_whiten_learns_on_the_training_split(runs, embedded, whiten, dim):
    features, index = embedded["test"]
    learned = fit_whitening(embedded["train"][0], dim)
    expected = evaluate(learned.apply(features), index.labels, (1, 10))
    result = run(runs[0], f"--whiten={whiten}")
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_features_are_reused_and_resumed(runs, tmp_path, capsys):
    file = tmp_path / "new" / "features.npy"
    first = run(runs[0], f"--features={file}")
    features = np.load(file)
    assert not file.with_name("features.npy.done").exists()
    capsys.readouterr()
    again = run(runs[0], f"--features={file}")
    assert "16 of 16 features are in" in capsys.readouterr().out
    assert {**again, "evaluated": 0} == {**first, "evaluated": 0}
    # As if it had been killed behind the fifth image.
    done = np.zeros(16, np.uint8)
    done[:5] = 1
    done.tofile(file.with_name("features.npy.done"))
    broken = features.copy()
    broken[5:] = 7
    np.save(file, broken)
    resumed = run(runs[0], f"--features={file}")
    assert "5 of 16 features are in" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(file), features, rtol=1e-5, atol=1e-6)
    assert resumed["recall@1"] == first["recall@1"]


def test_features_of_something_else_are_refused(runs, fails, tmp_path):
    file = tmp_path / "features.npy"
    run(runs[0], f"--features={file}")
    before = file.read_bytes()
    assert "features of other weights" in fails(
        f"--pretrained_model={runs[1]}", f"--features={file}"
    )
    assert "features of other images" in fails(
        f"--pretrained_model={runs[0]}", f"--features={file}", "--split=train"
    )
    assert "features of other preprocessing" in fails(
        f"--pretrained_model={runs[0]}", f"--features={file}", "--transform=standard"
    )
    assert file.read_bytes() == before
    file.write_bytes(before[:-40])
    assert "is damaged" in fails(f"--pretrained_model={runs[0]}", f"--features={file}")
    stranger = tmp_path / "mine.npy"
    np.save(stranger, np.zeros(3))
    assert "another program" in fails(f"--pretrained_model={runs[0]}", f"--features={stranger}")
    assert np.load(stranger).tolist() == [0, 0, 0]
    assert "ends in .npy" in fails(f"--pretrained_model={runs[0]}", f"--features={tmp_path / 'f'}")


def test_compare_says_which_queries_flipped(runs, embedded, tmp_path, capsys):
    file = tmp_path / "compare.json"
    result = eval_script.main(["--compare", *map(str, runs), *MACHINE, f"--json={file}"])
    paths = embedded["test"][1].paths
    values = [run(checkpoint)["recall@1"] for checkpoint in runs]
    assert [result[name]["recall@1"] for name in ("first", "second")] == values
    assert result["difference"] == pytest.approx(values[1] - values[0])
    flips = len(result["improved"]) - len(result["worsened"])
    assert flips == round(16 * result["difference"])
    assert set(result["improved"] + result["worsened"]) <= set(paths)
    written = json.loads(file.read_text())
    assert written["p_value"] == result["p_value"]
    flags = written["evaluated"]["flags"]
    assert [flag["pretrained_model"] for flag in flags] == [str(run) for run in runs]
    assert {flag["model"] for flag in flags} == {"ResNet18"}
    assert "queries wrong -> right" in capsys.readouterr().out


def test_compare_with_itself_finds_nothing(runs):
    result = eval_script.main(["--compare", str(runs[0]), str(runs[0]), *MACHINE])
    assert (result["difference"], result["p_value"], result["p_mcnemar"]) == (0, 1, 1)
    assert result["improved"] == result["worsened"] == []


def test_compare_takes_a_dump_on_either_side(runs, tmp_path, fails):
    """A dump of the same images stands for its checkpoint; one of others, or of length 1, not."""
    dumps = []
    for file in runs:
        words = [f"--pretrained_model={file}", *MACHINE, "--split=test", "--print_features=False"]
        dumps.append(infer.main([*words, f"--output_dir={tmp_path / f'dump {len(dumps)}'}"]))
    expected = eval_script.main(["--compare", *map(str, runs), *MACHINE])
    sides = [(dumps[0], runs[1]), (runs[0], dumps[1]), tuple(dumps)]
    for sided in sides:
        machine = ["--use_gpu=False"] if sided == tuple(dumps) else MACHINE
        file = tmp_path / "found.json"
        found = eval_script.main(["--compare", *map(str, sided), *machine, f"--json={file}"])
        for name in ("first", "second", "difference", "improved", "worsened"):
            assert found[name] == expected[name]
        weights = [flag["pretrained_model"] for flag in found["evaluated"]["flags"]]
        assert weights == [str(file) for file in runs]
        assert len(found["evaluated"]["depends_on"]) == 2

    others = infer.main(
        [f"--pretrained_model={runs[1]}", *MACHINE, "--split=train", f"--output_dir={tmp_path}/o"]
    )
    error = fails("--compare", runs[0], others)
    assert "holds features of other images" in error
    assert "write it again with infer.py, or embed the images without it" in error
    assert "--features is not used (with --compare)" in fails(
        "--compare", runs[0], dumps[1], f"--features={dumps[1]}"
    )


def test_compare_takes_the_flags_of_the_metrics(runs):
    flags = ["--ties=expected", "--precision_ks=2", "--rerank=qe:k=2"]
    result = eval_script.main(["--compare", *map(str, runs), *MACHINE, *flags])
    alone = run(runs[1], *flags)
    assert result["second"]["precision@2"] == alone["precision@2"]


def test_an_embedding_that_is_not_finite_names_its_image(runs, embedded, fails, tmp_path):
    file = tmp_path / "features.npy"
    run(runs[0], f"--features={file}")
    features = np.load(file)
    features[5, 3] = np.nan
    np.save(file, features)
    beside = file.with_name("features.npy.json")
    facts = json.loads(beside.read_text())
    del facts["crc32"]  # as if the network had made them
    beside.write_text(json.dumps(facts))
    error = fails(f"--pretrained_model={runs[0]}", f"--features={file}")
    assert embedded["test"][1].paths[5] in error and "NaN" in error


def test_class_tables(runs, toy_tree, tmp_path, capsys):
    """SOP's layout has super classes; eval.py logs their table and writes that of the classes."""
    for split in ("train", "test"):
        lines = ["image_id class_id super_class_id path"]
        for number, path in enumerate(sorted((toy_tree / split).glob("*/*.png")), start=1):
            label = int(path.parent.name.split("_")[1])
            lines.append(f"{number} {label + 1} {label % 2 + 1} {path}")
        (tmp_path / f"Ebay_{split}.txt").write_text("\n".join(lines) + "\n")
    table = tmp_path / "classes.csv"
    result = run(runs[0], "--dataset=sop", f"--data_dir={tmp_path}", f"--class_table={table}")
    rows = list(csv.DictReader(table.open()))
    assert [int(row["queries"]) for row in rows] == [4, 4, 4, 4]
    assert np.mean([float(row["recall@1"]) for row in rows]) == pytest.approx(result["recall@1"])
    by_super = result["super_classes"]
    assert [(row["class"], row["queries"]) for row in by_super] == [("1", 8), ("2", 8)]
    assert "queries" in capsys.readouterr().out


def test_a_class_layer_gives_the_reference_s_lines(runs, embedded, capsys):
    features, index = embedded["train"]
    checkpoint = torch.load(runs[0], weights_only=True)
    layer = build_loss("softmax", **checkpoint["meta"]["loss_options"])
    layer.load_state_dict(checkpoint["criterion"])
    result = run(runs[0], "--split=train", "--batch_size=8", "--display_iter_step=2")
    rows, labels = torch.from_numpy(features), torch.from_numpy(index.labels)
    with torch.inference_mode():
        loss, logits = layer(rows, labels)
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert result["acc1"] == (logits.argmax(1) == labels).double().mean().item()
    best = logits.topk(5, dim=1).indices
    assert result["acc5"] == (best == labels[:, None]).any(1).double().mean().item()
    lines = re.findall(
        r"Testbatch (\d+),loss \d+\.\d+, acc1 [01]\.\d+,acc5 [01]\.\d+,time \d+\.\d\d sec$",
        capsys.readouterr().out,
        re.M,
    )
    assert lines == ["0", "2"]


def test_unseen_classes_have_no_accuracy(runs, capsys):
    result = run(runs[0])
    assert "acc1" not in result and "Testbatch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ks=17"], ["--ks=17", "16 images"]),
        (["--precision_ks=1,40"], ["--precision_ks=40", "16 images"]),
        (["--rerank=best"], ["qe, dba, kreciprocal", "'best'"]),
        (["--rerank=qe:k=99"], ["99"]),
        (["--whiten=0"], ["number of dimensions or all", "'0'"]),
        (["--whiten=400"], ["1 to 23", "400"]),
        (["--ties=lucky"], ["pessimistic", "lucky"]),
        (["--distance=l1"], ["cosine", "euclidean", "l1"]),
        (["--distance=euclidean", "--rerank=qe"], ["--rerank is not used", "compare directions"]),
        (["--distance=euclidean", "--whiten=all"], ["--whiten is not used"]),
        (["--distance=euclidean", "--verification=True"], ["--verification is not used"]),
        (["--distance=euclidean", "--clustering=True"], ["--clustering is not used"]),
        (["--class_table=/proc/no/table.csv"], ["--class_table"]),
        (["--train_classes=1-2", "--split=all"], ["--train_classes", "--split=all takes all"]),
        (["--split=val"], ["no class folders with images for the val split", "train/"]),
    ],
)
def test_wrong_options_are_one_line(runs, fails, flags, words):
    error = fails(f"--pretrained_model={runs[0]}", *flags)
    assert all(word in error for word in words), error


def test_compare_needs_two_checkpoints_and_nothing_else(runs, fails, tmp_path):
    assert "--compare" in fails("--compare", runs[0])
    assert "--pretrained_model is not used" in fails(
        "--compare", *runs, f"--pretrained_model={runs[0]}"
    )
    assert "missing.pt" in fails("--compare", runs[0], tmp_path / "missing.pt")


@pytest.mark.parametrize("keeps_features", [False, True])
def test_two_processes_find_the_same_digits(runs, tmp_path, keeps_features):
    results = []
    for num_processes in (1, 2):
        file = tmp_path / f"{num_processes}.json"
        flags = [f"--pretrained_model={runs[1]}", *MACHINE, f"--json={file}", "--batch_size=1"]
        flags += ["--verification=True", "--precision_ks=3"]
        if keeps_features:
            flags.append(f"--features={tmp_path / f'{num_processes}.npy'}")
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={num_processes}"]
        subprocess.run(
            [sys.executable, *launcher, ROOT / "eval.py", *flags],
            check=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        result = json.loads(file.read_text())
        del result["evaluated"]
        results.append(result)
    assert results[0] == results[1]
