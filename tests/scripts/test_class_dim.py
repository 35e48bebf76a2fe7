"""Class layers of weights from elsewhere: v1's commands of evaluation and inference."""

import re

import numpy as np
import pytest
import torch
import torchvision

import eval as eval_script
import infer
import train_elem
import train_pair

MACHINE = ["--use_gpu=False", "--num_workers=0"]
V1 = ["--model=ResNet18", "--batch_size=8", "--image_shape=3,32,32", "--with_mem_opt=True"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of torchvision's ResNet18 with 10 classes, and the network itself."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture
def fails(error_of):
    return lambda main, *flags: error_of(main, [*MACHINE, *flags])


def run_infer(path, images, output_dir):
    folder = infer.main(
        [*MACHINE, *V1, "--class_dim=10", f"--pretrained_model={path}", f"--images={images}"]
        + [f"--output_dir={output_dir}"]
    )
    return np.load(folder / "features.npy")


def test_eval_gives_top_1_and_top_5(classifier, toy_tree, toy_flags, capsys):
    path, network = classifier
    result = eval_script.main(
        [*toy_flags, *V1, "--class_dim=10", f"--pretrained_model={path}", "--display_iter_step=1"]
    )
    log = capsys.readouterr().out
    form = r"\] Testbatch (\d),loss \d+\.\d+, acc1 [01]\.\d+,acc5 [01]\.\d+,time \d+\.\d\d sec$"
    assert re.findall(form, log, re.M) == ["0", "1"]
    assert "by number, taken to be those of folder: 6 is class_6, 9 is class_9" in log
    embeddings = run_infer(path, toy_tree / "test", toy_tree.parent / "features")
    logits = network.fc(torch.from_numpy(embeddings))
    labels = torch.arange(6, 10).repeat_interleave(4)  # the numbers of class_6 to class_9
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert result["acc1"] == (logits.argmax(1) == labels).double().mean().item()
    best = logits.topk(5).indices
    assert result["acc5"] == (best == labels[:, None]).any(1).double().mean().item()


def test_infer_gives_the_scores(classifier, toy_tree, tmp_path, capsys):
    path, network = classifier
    embeddings = run_infer(path, toy_tree / "test" / "class_6", tmp_path)
    found = re.findall(
        r"^Test-(\d)-score: \[(.+)\], class \[(\d)\]$", capsys.readouterr().out, re.M
    )
    scores, labels = network.fc(torch.from_numpy(embeddings)).max(1)
    assert [int(number) for number, _, _ in found] == [0, 1, 2, 3]
    assert [float(score) for _, score, _ in found] == pytest.approx(scores.tolist(), rel=1e-4)
    assert [int(label) for _, _, label in found] == labels.tolist()


def test_without_class_dim_it_is_left_out(classifier, toy_flags, capsys):
    path, _ = classifier
    assert "acc1" not in eval_script.main([*toy_flags, *V1, f"--pretrained_model={path}"])
    assert "left out: fc.weight, fc.bias" in capsys.readouterr().out


def test_classes_that_it_does_not_know_have_no_accuracy(classifier, toy_flags, capsys):
    """Training labels of six classes are not the numbers of the ten."""
    flags = [*toy_flags, *V1, "--class_dim=10", f"--pretrained_model={classifier[0]}"]
    assert "acc1" not in eval_script.main([*flags, "--split=train"])
    assert "no accuracy" in capsys.readouterr().out


def test_a_class_dim_that_is_not_there_is_one_line(classifier, toy_flags, tmp_path, fails):
    path, _ = classifier
    for main in (eval_script.main, infer.main):
        error = fails(main, *toy_flags, *V1, "--class_dim=1000", f"--pretrained_model={path}")
        assert "--class_dim=1000" in error and "a class layer of 10 classes" in error
    error = fails(eval_script.main, *toy_flags, *V1, "--class_dim=5", "--pretrained_model=random")
    assert "no class layer" in error
    index = f"--index={tmp_path / 'photos.index'}"
    assert "--class_dim is not used" in fails(infer.main, index, "--class_dim=10")
    assert "--class_dim is not used" in fails(infer.main, index, "--query=a.jpg", "--class_dim=10")


def test_the_class_dim_of_a_checkpoint_is_checked(toy_flags, tmp_path, fails):
    flags = [*toy_flags, "--train_batch_size=8", "--total_iter_num=0", "--test_iter_step=0"]
    flags.append(f"--model_save_dir={tmp_path}")
    elem = train_elem.main(flags) / "last.pt"
    pair = train_pair.main([*flags, "--loss_name=eml"]) / "last.pt"
    result = eval_script.main([f"--pretrained_model={elem}", "--class_dim=6", "--split=train"])
    assert "acc1" in result
    error = fails(eval_script.main, f"--pretrained_model={elem}", "--class_dim=7")
    assert "a class layer of 6 classes" in error
    error = fails(eval_script.main, f"--pretrained_model={pair}", "--class_dim=6")
    assert "no class layer" in error
