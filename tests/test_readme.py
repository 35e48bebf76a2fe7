"""The commands of the README and the recipes name scripts, flags and files that exist."""

import re
import shlex
from pathlib import Path

import pytest

import eval as eval_script
import infer
import train_elem
import train_pair
from metric_learning.common.flags import parse_flags
from metric_learning.engine.options.training_flags import training_flags
from metric_learning.engine.run.checkpoints import load_checkpoint
from metric_learning.engine.train.criterion import PAIR_FLAGS
from metric_learning.losses import PAIR_LOSSES

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "train_elem.py": train_elem,
    "train_pair.py": train_pair,
    "eval.py": eval_script,
    "infer.py": infer,
}
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ")
]


def test_there_are_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)[1:]
    if words[0] in SCRIPTS:
        parse_flags("", SCRIPTS[words[0]].FLAGS, words[1:])
    elif words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    else:
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipe_is_understood(recipe):
    text = recipe.read_text("utf-8")
    loss = re.search(r"^loss_name: (\w+)", text, re.M)
    script = "eval.py"
    if loss:
        script = "train_elem.py" if loss[1] in train_elem.ELEM_LOSSES else "train_pair.py"
    args, given = parse_flags("", SCRIPTS[script].FLAGS, [f"--config={recipe}"])
    assert len(given) == len([line for line in text.splitlines() if line and line[0] != "#"]) + 1


def test_the_example_of_a_loss_trains_with_its_own_flag(monkeypatch, toy_flags, tmp_path):
    readme = (ROOT / "README.md").read_text("utf-8")
    [example] = re.findall(r"^```python\n(# losses/cosineloss\.py.*?)^```", readme, re.S | re.M)
    namespace = {}
    exec(compile(example, "losses/cosineloss.py", "exec"), namespace)
    monkeypatch.setitem(PAIR_LOSSES, "cosine", namespace["CosineLoss"])
    flags = (*training_flags(PAIR_LOSSES, loss_name="cosine"), *PAIR_FLAGS)
    [flag] = [flag for flag in flags if flag.name == "cosine_margin"]
    assert flag.help == "cosine up to which a negative pair costs nothing (default cosine: 0.5)"
    monkeypatch.setattr(train_pair, "FLAGS", flags)
    folder = train_pair.main(
        [*toy_flags, "--model=test_resnet", "--loss_name=cosine", "--cosine_margin=0.3"]
        + ["--train_batch_size=8", "--lr=0.001", "--lr_steps=9", "--total_iter_num=2"]
        + ["--test_iter_step=0", "--xbm_size=16", f"--model_save_dir={tmp_path}"]
    )
    options = load_checkpoint(folder / "last.pt")["meta"]["loss_options"]
    assert options == {"cosine_margin": 0.3}
