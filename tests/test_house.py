"""The house: which room uses which, who is told what, and sizes that keep functions readable."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metric_learning.common.flags import last_of_each

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_elem", "train_pair", "eval", "infer")
# From the ground up: what stands later may use what stands before it.
ROOMS = ("common", "losses", "models", "reader", "retrieval", "engine", "pretrained", "data")
ENGINE = (
    "parallel",
    "options",
    "run",
    "embed",
    "search",
    "evaluate",
    "train",
    "report",
    "serve",
    "leaderboard",
)
FLOORS = {room: number for number, room in enumerate((*ROOMS, *SCRIPTS, "metric_learning"))}
MOST_RAW_FLAGS = 13
TAKE_ALL = {"train", "evaluate", "infer"}
ALL_OPTIONS = {"Options", "EvaluationOptions", "InferenceOptions"}


def find_modules():
    """Module name -> parsed file, of everything but tests and benchmarks."""
    files = [ROOT / f"{name}.py" for name in SCRIPTS]
    files += [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    modules = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(file.read_text("utf-8"))
    return modules


MODULES = find_modules()
FUNCTIONS = [
    (name, node)
    for name, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def imports_of(tree):
    """Modules of this project that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metric_learning."):
            base = node.module.removeprefix("metric_learning.")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


GRAPH = {name: set(imports_of(tree)) - {name} for name, tree in MODULES.items()}


def circles(graph):
    """Places that are reached again from themselves."""

    def reached(start):
        seen, waiting = set(), list(graph.get(start, ()))
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                waiting.extend(graph.get(place, ()))
        return seen

    return sorted(place for place in graph if place in reached(place))


def test_no_files_import_each_other_in_a_circle():
    assert len(GRAPH) > 150 and circles(GRAPH) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_folders_import_each_other_in_a_circle(depth):
    def place(name):
        return ".".join(name.split(".")[:depth])

    graph = {}
    for name, others in GRAPH.items():
        inside = graph.setdefault(place(name), set())
        inside.update(place(other) for other in others if place(other) != place(name))
    assert circles(graph) == []


def test_no_room_uses_one_above_it():
    upwards = [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if FLOORS[other.split(".")[0]] > FLOORS[name.split(".")[0]]
    ]
    assert upwards == []


def test_no_room_of_the_engine_uses_one_above_it():
    floors = {room: number for number, room in enumerate(ENGINE)}

    def floor(name):
        return floors[name.split(".")[1]]

    inside = [name for name in GRAPH if name.startswith("engine.")]
    assert {name.split(".")[1] for name in inside} == set(ENGINE)
    upwards = [
        (name, other)
        for name in inside
        for other in GRAPH[name]
        if other.startswith("engine.") and floor(other) > floor(name)
    ]
    assert upwards == []


def test_the_engine_s_files_lie_in_rooms():
    assert [file.name for file in (ROOT / "engine").glob("*.py")] == ["__init__.py"]
    for room in ENGINE:
        assert len(list((ROOT / "engine" / room).glob("*.py"))) <= 12, room


def test_a_package_s_own_file_only_imports():
    for name, tree in MODULES.items():
        if (ROOT / name.replace(".", "/") / "__init__.py").is_file():
            kinds = {type(node) for node in tree.body[1:]}
            assert kinds <= {ast.Import, ast.ImportFrom, ast.Assign}, name
            assigned = [n.targets[0].id for n in tree.body if isinstance(n, ast.Assign)]
            assert assigned in ([], ["__all__"]), name


def annotation_words(argument):
    """Names in the annotation of a parameter."""
    nodes = ast.walk(argument.annotation) if argument.annotation else ()
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def parameters(function):
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def test_few_functions_take_the_raw_flags():
    found = [
        f"{name}.{function.name}"
        for name, function in FUNCTIONS
        for parameter in parameters(function)
        if parameter.arg in ("args", "flags")
        or annotation_words(parameter) & {"Flags", "Namespace"}
    ]
    assert 0 < len(found) <= MOST_RAW_FLAGS, found


def test_the_whole_options_end_at_the_door():
    found = {
        function.name
        for name, function in FUNCTIONS
        for parameter in parameters(function)
        if annotation_words(parameter) & ALL_OPTIONS and not name.startswith("engine.options")
    }
    assert found and found <= TAKE_ALL


def test_nothing_is_written_to_flags_or_options():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                raise AssertionError(f"{name}:{node.lineno} sets an attribute by its name")
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            for target in targets if isinstance(node, ast.Assign | ast.AugAssign) else ():
                holder = getattr(getattr(target, "value", None), "id", "")
                is_attribute = isinstance(target, ast.Attribute)
                assert not (is_attribute and holder in ("args", "flags", "options")), (
                    f"{name}:{node.lineno} writes to {holder}"
                )


def test_functions_are_short():
    long = {
        f"{name}.{function.name}": function.end_lineno - function.lineno + 1
        for name, function in FUNCTIONS
        if function.end_lineno - function.lineno >= 50
    }
    assert long == {}
    for script in SCRIPTS:
        assert len((ROOT / f"{script}.py").read_text().splitlines()) <= 150


def test_long_bodies_have_paragraphs():
    found = []
    for name, function in FUNCTIONS:
        path = ROOT / f"{name.replace('.', '/')}.py"
        lines = (path if path.is_file() else path.with_suffix("") / "__init__.py").read_text(
            "utf-8"
        )
        first = function.body[1:] if ast.get_docstring(function) else function.body
        if first:
            body = lines.splitlines()[first[0].lineno - 1 : function.end_lineno]
            if len(body) >= 15 and all(line.strip() for line in body):
                found.append(f"{name}.{function.name}")
    assert found == []


TRACED = """
import sys
from functools import cache
from pathlib import Path

import train_pair

ROOT = Path.cwd()
steps, stack = [], []


@cache
def place_of(name):
    file = Path(name)
    if "site-packages" in file.parts or not file.is_file():
        return None
    file = file.resolve()
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else None


def note(frame, event, argument):
    place = place_of(frame.f_code.co_filename) if event == "call" else None
    if place is None or ".venv" in place:
        return
    if frame.f_code.co_name == "set_rate":
        steps.append(set())
    if steps:
        steps[-1].add(place)
    if steps and place.startswith("losses/") and frame.f_code.co_name == "forward" and not stack:
        while frame is not None:
            place = place_of(frame.f_code.co_filename)
            if place and frame.f_code.co_name != "<module>":
                stack.append(f"{place}:{frame.f_code.co_name}")
            frame = frame.f_back


sys.setprofile(note)
train_pair.main(sys.argv[1:])
sys.setprofile(None)
print(*sorted(steps[1]))
print(*stack[:0:-1])
"""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_step_is_read_in_few_files(num_workers, toy_flags, tmp_path):
    """One step visits 10 files of the project at most, and the criterion lies 4 frames deep."""
    flags = [*toy_flags, f"--num_workers={num_workers}", "--model=test_resnet"]
    flags += ["--loss_name=eml", "--train_batch_size=8", "--total_iter_num=3", "--lr=0.001"]
    flags += ["--test_iter_step=0", "--save_iter_step=0", f"--model_save_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", TRACED, *last_of_each(flags)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files, frames = (line.split() for line in done.stdout.splitlines()[-2:])
    assert 5 < len(files) <= 10, files
    assert frames == [
        "train_pair.py:main",
        "engine/train/train.py:train",
        "engine/train/step.py:__call__",
        "engine/train/stages.py:pair_loss",
    ]


HEAVY = ("torch", "torchvision", "timm", "sklearn", "matplotlib", "numpy", "numba", "faiss", "cv2")
REFUSED = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1]).main(["--no_such_flag=1"])
except SystemExit as stop:
    assert stop.code == 2
print(*sys.modules)
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_is_refused_before_anything_heavy_is_imported(script):
    command = [sys.executable, "-c", REFUSED, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "unknown flag --no_such_flag" in done.stderr, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


def test_folders_and_package_are_the_same():
    """`import losses` in a checkout gives the objects of the package, not copies."""
    program = """
import losses, models, reader, reader.transforms, retrieval
import metric_learning.losses, metric_learning.models, metric_learning.reader
import metric_learning.retrieval
for name in ("losses", "models", "reader", "retrieval"):
    own, other = globals()[name], getattr(metric_learning, name)
    assert all(getattr(own, word) is getattr(other, word) for word in own.__all__), name
assert losses.ELEM_LOSSES is metric_learning.losses.ELEM_LOSSES
assert reader.load_index is metric_learning.reader.load_image_set
assert callable(reader.transforms.reference_eval)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
