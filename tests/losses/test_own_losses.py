"""Losses of one's own: classes of any module, named `module:Class`."""

import sys

import pytest
import torch

from metric_learning.losses import (
    PAIR_LOSSES,
    build_loss,
    find_loss,
    layout_of,
    loss_options,
    stage_of,
)
from metric_learning.losses.functional import accuracies, classes_ahead

MODULE = '''
import torch
from torch import nn

NUMBER = 3


class ClassLoss(nn.Module):
    """Cross-entropy of dot products.

    Args:
        class_dim: number of classes.
        embedding_size: dimension.
        scale: factor on the dot products.
    """

    stage = 1

    def __init__(self, class_dim: int, embedding_size: int, scale: float = 2.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(class_dim, embedding_size))

    def forward(self, embeddings, labels):
        logits = self.scale * embeddings @ self.weight.T
        return nn.functional.cross_entropy(logits, labels), logits


class PairLoss(nn.Module):
    stage = 2
    layout = "labels"

    def __init__(self, ks: "tuple[int, ...]" = (1, 2), name: str = "", hard: bool = False, *rest):
        super().__init__()

    def forward(self, embeddings, labels):
        return embeddings.square().mean()


class Blocks(PairLoss):
    layout = "blocks"


class NoStage(nn.Module):
    pass


class ThirdStage(nn.Module):
    stage = 3


class WrongType(nn.Module):
    stage = 2

    def __init__(self, margin: dict = {}, **others):
        super().__init__()


class NoType(nn.Module):
    stage = 2

    def __init__(self, margin=0.1):
        super().__init__()
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """A module of losses in the working directory, which nothing has imported before the test."""
    (tmp_path / "my_losses.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "unreadable.py").write_text("def wrong(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in ("my_losses", "broken", "unreadable"):
        sys.modules.pop(name, None)


def test_a_loss_of_stage_1_has_its_options_and_contract():
    name = "my_losses:ClassLoss"
    assert (stage_of(name), find_loss(name).__name__) == (1, "ClassLoss")
    options = loss_options(name)
    assert {option: parameter.annotation for option, parameter in options.items()} == {
        "class_dim": int,
        "embedding_size": int,
        "scale": float,
    }
    criterion = build_loss(name, class_dim=3, embedding_size=2, scale=4.0)
    loss, logits = criterion(torch.eye(2), torch.tensor([0, 2]))
    assert logits.shape == (2, 3) and loss.item() == pytest.approx(torch.log(torch.tensor(3.0)))


def test_a_loss_of_stage_2_has_its_layout():
    name = "my_losses:PairLoss"
    assert (stage_of(name), layout_of(name)) == (2, "labels")
    assert list(loss_options(name)) == ["ks", "name", "hard"]
    assert loss_options(name)["ks"].annotation == tuple[int, ...]
    assert build_loss(name, ks=(4,))(torch.ones(2, 2), torch.tensor([0, 0])) == 1
    assert layout_of("my_losses:Blocks") == "blocks"


def test_nothing_is_imported_before_it_is_asked_for():
    build_loss("triplet")
    assert "my_losses" not in sys.modules
    stage_of("my_losses:Blocks")
    assert "my_losses" in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Loss", "cannot import no_such_module .*No module named 'no_such_module'"),
        ("broken:Loss", "cannot import broken .*no_such_package"),
        ("unreadable:Loss", "cannot import unreadable .*SyntaxError"),
        ("./my_losses.py:PairLoss", "cannot import ./my_losses.py"),
        (":PairLoss", "cannot import"),
        ("my_losses:NoSuchLoss", "module 'my_losses' from '.*my_losses.py'> has no 'NoSuchLoss'"),
        ("sys:NoSuchLoss", "has no 'NoSuchLoss'"),
        ("my_losses:", "has no "),
        ("my_losses:NUMBER", "expected a subclass of torch.nn.Module, found 3"),
        ("pathlib:Path", "expected a subclass of torch.nn.Module, found .*Path"),
        ("my_losses:NoStage", "expected a class attribute `stage`, 1 .* or 2 .*, found none"),
        ("my_losses:ThirdStage", "expected a class attribute `stage`, 1 .* or 2 .*, found 3"),
        ("my_losses:WrongType", "annotate its option margin as int, float, bool, str or tuple"),
        ("my_losses:NoType", "annotate its option margin as int, float, bool, str or tuple"),
    ],
)
@pytest.mark.parametrize("ask", [stage_of, layout_of, loss_options, build_loss])
def test_what_is_wrong_is_one_line(ask, name, words):
    with pytest.raises(ValueError, match=words) as error:
        ask(name)
    assert "\n" not in str(error.value)


def test_options_are_checked_as_those_of_all_losses():
    with pytest.raises(ValueError, match="ClassLoss does not use margin: its options are class_d"):
        build_loss("my_losses:ClassLoss", margin=1.0)
    with pytest.raises(ValueError, match="my_losses:ClassLoss needs embedding_size"):
        build_loss("my_losses:ClassLoss", class_dim=3)


def test_every_other_name_has_a_stage_too():
    assert stage_of("arcmargin") == 1
    assert {stage_of(name) for name in (*PAIR_LOSSES, "pml:NCALoss")} == {2}
    with pytest.raises(ValueError, match="unknown loss 'tripplet': choose from softmax"):
        stage_of("tripplet")


def test_accuracies_count_ties_against_the_image():
    scores = torch.tensor([[1.0, 2.0], [1.0, 1.0], [float("nan"), 0.0]])
    ahead = classes_ahead(scores, torch.tensor([1, 0, 0]))
    assert ahead.tolist() == [0, 1, 1] and ahead.dtype == torch.int64
    assert {k: v.item() for k, v in accuracies(ahead).items()} == {
        "acc1": pytest.approx(1 / 3),
        "acc5": 1.0,
    }
