"""Weights as others save them: found wherever they lie, chosen where there are several."""

import argparse
import os
import pickle
import re

import numpy as np
import pytest
import torch

from metric_learning.models import build_model, load_weights, read_metadata

NAME = "test_resnet"


@pytest.fixture(scope="module")
def states():
    """State dicts of two backbones without batch counters, as their authors have them."""
    torch.manual_seed(1)
    models = [build_model(NAME) for _ in range(2)]
    return [
        {k: v.uniform_(0.1, 0.9) for k, v in m.backbone.state_dict().items() if "num_b" not in k}
        for m in models
    ]


class Odd:
    """An object of a class of somebody's own."""

    def __init__(self):
        self.rate = 0.1


def under(prefix, state):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def is_filled(model, state):
    own = model.backbone.state_dict()
    return all(torch.equal(own[key], tensor) for key, tensor in state.items())


FORMS = {
    "trainer with a criterion": lambda s: under("model.", s) | {"criterion.weight": torch.eye(3)},
    "averaged model": lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)},
    "lightning": lambda s: {
        "state_dict": under("model.net.", s) | {"val_metric.total": torch.tensor(1.0)},
        "hyper_parameters": {"optimizer": Odd(), "lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.float64(0.5)}},
    },
    "pixel mean": lambda s: {"model": under("backbone.", s) | {"pixel_mean": torch.ones(3, 1, 1)}},
    "net": lambda s: {"net": s, "acc": 93.0},
    "any prefix": lambda s: under("my.own.visual_tower.", s) | {"my.queue": torch.ones(2)},
    "deep": lambda s: {"a": {"b": {"weights": under("encoder.", s)}}},
    "timm": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(77.6),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
    },
    "arrays": lambda s: {"model": {key: tensor.numpy() for key, tensor in s.items()}},
    "list": lambda s: [{"epoch": 3}, ("model", under("net.", s)), {"optim": [s]}],
    "arrays of texts and objects": lambda s: {
        "model": s,
        "classes": np.array(["a", "b"]),
        "best": (np.str_("a"), np.bool_(True), np.datetime64("2026-01-01"), np.complex64(1)),
        "rest": np.array([Odd(), None], dtype=object),
    },
    "ordinary parameters": lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()},
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_backbone_is_found_wherever_it_lies(form, is_zip, states, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(FORMS[form](states[0]), path, _use_new_zipfile_serialization=is_zip)
    model = build_model(NAME)
    report = load_weights(model, path)
    assert report.missing == [] and is_filled(model, states[0])
    extra = {"trainer with a criterion": "criterion.weight", "pixel mean": "pixel_mean"}
    assert extra.get(form, "") in report.remarks
    assert read_metadata(path) is None


def test_a_pickled_module_is_read_without_making_it(states, tmp_path):
    model = build_model(NAME)
    model.backbone.load_state_dict(states[0], strict=False)
    for content in (model, {"model": model.backbone, "epoch": 3}, torch.nn.DataParallel(model)):
        torch.save(content, tmp_path / "w.pt")
        loaded = build_model(NAME)
        assert load_weights(loaded, tmp_path / "w.pt").missing == []
        assert is_filled(loaded, states[0])


PAIRS = {
    "one dict": lambda a, b: {"state_dict": under("m.encoder_q.", a) | under("m.encoder_k.", b)},
    "two dicts": lambda a, b: {"encoder_q": under("m.", a), "encoder_k": under("m.", b)},
    "top and beside": lambda a, b: under("encoder_q.", a) | {"encoder_k": b},
}


@pytest.mark.parametrize("form", PAIRS)
def test_of_several_networks_one_is_to_be_chosen(form, states, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(PAIRS[form](*states), path)
    with pytest.raises(
        ValueError, match=r"several networks.*encoder_q.*encoder_k.*choose"
    ) as error:
        load_weights(build_model(NAME), path)
    example = re.search(rf"in {path}::(\S+)$", str(error.value))[1]
    chosen = {"encoder_q": 0, "encoder_k": 1, example: 0}
    for part, number in chosen.items():
        model = build_model(NAME)
        load_weights(model, f"{path}::{part}")
        assert is_filled(model, states[number])
    with pytest.raises(ValueError, match="holds nothing under ::teacher"):
        load_weights(build_model(NAME), f"{path}::teacher")


def test_equal_networks_are_one_and_an_average_goes_before_its_source(states, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(under("student.", states[0]) | under("teacher.", states[0]), path)
    model = build_model(NAME)
    assert len(load_weights(model, path).unexpected) == len(states[0])
    torch.save({"state_dict": states[0], "state_dict_ema": states[1]}, path)
    assert load_weights(model, path).place == "state_dict_ema"
    assert is_filled(model, states[1])


def test_own_checkpoints_hold_one_network(states, tmp_path):
    """The network that is given away is read, not the one that its average was taken of."""
    meta = {"model": NAME, "embedding_size": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    live = under("backbone.", states[1])
    content = {"model": under("backbone.", states[0]), "live_model": live, "meta": meta}
    torch.save(content, tmp_path / "last.pt")
    model = build_model(NAME)
    assert load_weights(model, tmp_path / "last.pt").remarks == ""
    assert is_filled(model, states[0]) and model.mean == (0.5, 0.5, 0.5)
    load_weights(model, f"{tmp_path / 'last.pt'}::live_model")
    assert is_filled(model, states[1])


ODD_TENSORS = {
    "sparse": lambda t: t.to_sparse(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "meta device": lambda t: t.to("meta"),
    "int8": lambda t: t.to(torch.int8),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    r"\(3, 3\) for": lambda t: torch.zeros(3, 3),
    "expanded": lambda t: torch.zeros(1).expand(10**6, 10**9),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_cannot_be_weights_are_named(kind, states, tmp_path):
    state = dict(states[0])
    key = next(key for key in state if state[key].ndim == 4)
    state[key] = ODD_TENSORS[kind](state[key])
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"1 of another shape or type .*{key}.*{kind}") as error:
        load_weights(build_model(NAME), tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_layers_within_the_backbone_are_not_left_out(states, tmp_path):
    """A deeper network, or one of other blocks, has all tensors of this one too."""
    key = next(key for key in states[0] if key.startswith("layer1.0."))
    torch.save(states[0] | {"layer1.7.conv1.weight": states[0][key]}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"1 unexpected \(layer1.7.conv1.weight\)"):
        load_weights(build_model(NAME), tmp_path / "w.pt")


def test_a_dict_that_holds_itself_does_not_hang(states, tmp_path):
    loop = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(build_model(NAME), tmp_path / "w.pt")
    torch.save(loop | states[0], tmp_path / "w.pt")
    assert load_weights(build_model(NAME), tmp_path / "w.pt").missing == []


def test_keys_that_take_for_ever_to_hash_do_not_hang(tmp_path):
    key = ()
    for _ in range(99):
        key = (key, key)
    program = pickle.dumps([{}, key])
    assert program.endswith(b"e.")
    # Instead of both going into the list, the tuple becomes a key of the dict.
    (tmp_path / "a.pdparams").write_bytes(program[:-2] + b"N" + pickle.SETITEM + b".")
    with pytest.raises(ValueError, match="a key that is no name"):
        load_weights(build_model("ResNet18"), tmp_path / "a.pdparams")


class Trap:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("is_zip", "protocol"), [(False, 2), *((True, protocol) for protocol in range(2, 6))]
)
def test_objects_beside_the_weights_are_not_made(is_zip, protocol, states, tmp_path):
    trap = tmp_path / "trap"
    traps = [Trap(os.mkdir, str(trap)), Trap(eval, f"__import__('os').mkdir({str(trap)!r})")]
    content = {"state_dict": states[0], "config": traps, Odd: Trap(exec, "1/0")}
    torch.save(
        content, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol
    )
    model = build_model(NAME)
    load_weights(model, tmp_path / "w.pt")
    assert is_filled(model, states[0]) and not trap.exists()


def test_a_pickle_changes_nothing_that_outlives_it(tmp_path):
    """Names that are known here are values: no pickle sets their attributes."""
    program = b"\x80\x02cnumpy\ndtype\n}X\x08\x00\x00\x00functionNsb."
    (tmp_path / "a.pdparams").write_bytes(program)
    with pytest.raises(ValueError, match="holds no arrays"):
        load_weights(build_model("ResNet18"), tmp_path / "a.pdparams")
    (tmp_path / "b.pdparams").write_bytes(pickle.dumps({"fc_0.w_0": np.ones((2, 3), "<f4")}))
    with pytest.raises(ValueError, match="another model"):
        load_weights(build_model("ResNet18"), tmp_path / "b.pdparams")


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    for path in (tmp_path / "w.pt", "/dev/zero"):
        with pytest.raises(ValueError, match="a pipe or a device"):
            load_weights(build_model(NAME), path)
