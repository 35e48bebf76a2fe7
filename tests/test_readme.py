"""The README, its translations and the pages of docs/ say what is so: commands, links, tables."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import eval as eval_script
import infer
import metric_learning
import train_elem
import train_pair
from metric_learning.__main__ import COMMANDS as SUBCOMMANDS
from metric_learning.common.flags import last_of_each, parse_flags
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "train_elem.py": train_elem,
    "train_pair.py": train_pair,
    "eval.py": eval_script,
    "infer.py": infer,
}
READMES = sorted(ROOT.glob("README*.md"))
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "data/README.md", "pretrained/README.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text("utf-8")) if found == language]


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "") + blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def lines_with(page: Path, start: str) -> list[str]:
    return [line for line in page.read_text("utf-8").splitlines() if line.startswith(start)]


CONFIGS = ROOT / "configs"
RECIPES = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("recipes/*.yaml")])
ALL_COMMANDS = sorted({command for page in PAGES + OTHERS for command in commands(page)})


def test_there_are_pages_and_commands():
    assert len(READMES) == 3
    assert len(PAGES) >= 15
    assert len(commands(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{words[0]}:", Path("Makefile").read_text("utf-8"), re.M)
        return
    if program == "torchrun":
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    elif program != "python":
        assert program in ("cd", "pip", "curl")
        return

    words = [word for word in words if word != "..."]
    if words[0] in SCRIPTS:
        parse_flags("", SCRIPTS[words[0]].FLAGS, words[1:])
    elif words[:2] == ["-m", "metric_learning"]:
        assert words[2] in SUBCOMMANDS
    else:
        program = words[1].replace(".", "/") if words[0] == "-m" else words[0]
        sources = [file for file in source_files(Path(program)) if file.is_file()]
        assert sources
        text = "\n".join(file.read_text("utf-8") for file in sources)
        for flag in re.findall(r"--(\w+)", command):
            assert re.search(rf"\b{flag}\b", text), flag


def source_files(program: Path) -> list[Path]:
    if program.is_dir():
        assert (program / "__main__.py").is_file()
        return sorted(program.glob("*.py"))
    return [program.with_suffix(".py")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_understood(recipe):
    text = recipe.read_text("utf-8")
    flags = yaml.safe_load(text)
    script = "eval.py"
    if "loss_name" in flags:
        script = "train_elem.py" if flags["loss_name"] in ELEM_LOSSES else "train_pair.py"
    parse_flags("", SCRIPTS[script].FLAGS, [f"--config={recipe}"])
    assert len(flags) == len([line for line in text.splitlines() if line and line[0] != "#"])


@pytest.mark.parametrize("page", READMES, ids=name_of)
def test_a_readme_is_short_and_shows_a_picture(page):
    assert len(page.read_text("utf-8").splitlines()) <= 200
    assert len(lines_with(page, "![")) == 1


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_links_and_pictures_exist(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_pictures_are_small():
    pictures = [file for file in (ROOT / "docs" / "images").iterdir() if file.is_file()]
    assert pictures
    assert all(file.stat().st_size < 200_000 for file in pictures)


@pytest.mark.parametrize("language", ["zh", "ja"])
@pytest.mark.parametrize("name", ["README", "docs/index"])
def test_a_translation_has_the_same_commands_and_figures(name, language):
    original, translation = ROOT / f"{name}.md", ROOT / f"{name}.{language}.md"
    assert commands(translation) == commands(original)
    assert blocks(translation, "text") == blocks(original, "text")
    assert len(blocks(translation, "python")) == len(blocks(original, "python"))
    for ours, theirs in zip(blocks(translation, "python"), blocks(original, "python"), strict=True):
        assert ast.dump(ast.parse(ours)) == ast.dump(ast.parse(theirs))

    figures = [
        re.findall(r"\d+\.\d+", " ".join(lines_with(page, "|"))) for page in (original, translation)
    ]
    assert figures[0] == figures[1]
    assert headings(translation) == headings(original)


def headings(page: Path) -> list[int]:
    return [len(line.split(" ")[0]) for line in lines_with(page, "#")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == metric_learning.__version__
    assert f"version {citation['version']}" in lines_with(ROOT / "CHANGELOG.md", "## ")[0]
    assert str(citation["date-released"]) in lines_with(ROOT / "CHANGELOG.md", "## ")[0]


def test_the_table_of_losses_is_complete_and_its_defaults_are_so():
    rows = [line.split("|") for line in lines_with(ROOT / "docs" / "losses.md", "| `")]
    rows = rows[1:]  # below the heading
    described = {cells[1].strip(" `"): (cells[2].strip(), cells[3]) for cells in rows}
    assert set(described) == {*ELEM_LOSSES, *PAIR_LOSSES, "pml:NAME"}
    for name, loss in (ELEM_LOSSES | PAIR_LOSSES).items():
        stage, text = described[name]
        assert stage == ("1" if name in ELEM_LOSSES else "2")
        options = inspect.signature(loss).parameters
        for flag, value in re.findall(r"`--(\w+)=?([^`]*)`", text):
            assert flag in options, f"{name} has no option {flag}"
            if value:
                assert value_of(value) == options[flag].default, f"{name}: {flag}"


def value_of(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def test_the_example_of_a_loss_trains_with_its_own_flag(toy_flags, tmp_path):
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "output", "site", "tests", "docs", "demo", "__pycache__")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
    file, table = (
        next(
            block
            for block in blocks(ROOT / "docs" / "losses.md", "python")
            if block.startswith(start)
        )
        for start in ("# losses/cosineloss.py", "# losses/table.py")
    )
    (checkout / "losses" / "cosineloss.py").write_text(file, "utf-8")
    import_line, row = table.splitlines()[1], table.splitlines()[-2]
    assert import_line.startswith("from ") and row.startswith('    "cosine":')
    text = (checkout / "losses" / "table.py").read_text("utf-8")
    text = text.replace("\nfrom metric_learning", f"\n{import_line}\nfrom metric_learning", 1)
    text, count = re.subn(r"^PAIR_LOSSES\b.*= \{$", rf"\g<0>\n{row}", text, flags=re.M)
    assert count == 1
    (checkout / "losses" / "table.py").write_text(text, "utf-8")

    both = "import train_pair as t\ntry: t.main(['--help'])\nexcept SystemExit: t.main()"
    flags = [*toy_flags, "--model=test_resnet", "--loss_name=cosine", "--cosine_margin=0.3"]
    flags += ["--train_batch_size=8", "--lr=0.001", "--total_iter_num=2", "--test_iter_step=0"]
    flags += ["--model_save_dir=runs", "--run_name=cosine"]
    command = [sys.executable, "-c", both, *last_of_each(flags)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cosine up to which a negative pair costs nothing" in " ".join(done.stdout.split())
    assert (checkout / "runs" / "cosine" / "last.pt").is_file()
