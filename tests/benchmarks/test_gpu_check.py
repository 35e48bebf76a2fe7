"""The check of a GPU, run on the CPU with tiny sizes: all of it is slow, its fastest parts not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import ROOT
from benchmarks.gpu.check import SECTIONS
from benchmarks.gpu.section import Section, relative
from metric_learning.retrieval.counting.full_precision import full_precision


def run(folder: Path, *flags: str) -> tuple[dict, dict]:
    """Run the check; return how each section ended, and what each found."""
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--device=cpu", f"--out={folder}"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends, found = {}, {}
    for line in (folder / "gpu_check.jsonl").read_text().splitlines():
        finding = json.loads(line)
        name = finding.pop("section")
        if "status" in finding:
            ends[name] = finding["status"]
        else:
            found.setdefault(name, {}).update(finding)
    return ends, found


def test_every_section_is_there():
    assert len(SECTIONS) == 19
    for name, entry in SECTIONS.items():
        module = ROOT / "benchmarks" / "gpu" / f"{entry.module}.py"
        assert f"\ndef {name}(section: Section) -> None:" in module.read_text()


def test_the_fastest_sections_find_what_they_look_for(tmp_path):
    ends, found = run(tmp_path, "--only=env,precision,ceilings,augment")
    assert ends == dict.fromkeys(("data", "env", "precision", "ceilings", "augment", "all"), "ok")
    assert found["env"]["versions"]["torch"] and found["env"]["amp_auto"] == "None"
    assert (
        found["precision"]["ieee"]["relative"] < 1e-5 < found["precision"]["bfloat16"]["relative"]
    )
    assert found["ceilings"]["float64 TFLOP/s"] > 0
    assert found["augment"]["bytes_that_differ"] == 0
    assert "===== precision" in (tmp_path / "gpu_check.log").read_text()


@pytest.mark.slow
def test_all_sections_end_without_errors(tmp_path):
    ends, found = run(tmp_path)
    assert ends == dict.fromkeys((*SECTIONS, "all"), "ok")
    errors = {
        (name, step): value
        for name, findings in found.items()
        for step, value in findings.items()
        if step == "error" or "error" in (value if isinstance(value, dict) else {})
    }
    assert not errors
    assert found["losses"]["not_equal"] == [] and found["tests"]["failed"] == []


def test_an_error_is_noted_and_the_section_goes_on(tmp_path):
    findings = tmp_path / "findings.jsonl"
    section = Section("env", "cpu", tmp_path, findings, 1, 60)
    assert section.attempt("wrong", int, "x") is None
    assert section.attempt("right", relative, 3.0, 2.0) == 0.5
    section.until = 0.0
    assert section.attempt("late", relative, 3.0, 2.0) is None
    lines = [json.loads(line) for line in findings.read_text().splitlines()]
    assert lines[0]["wrong"]["error"].startswith("ValueError: invalid literal for int()")
    assert lines[1] == {"section": "env", "right": 0.5} and "skipped" in lines[2]["late"]


def test_the_precision_of_convolutions_is_given_back():
    import torch

    before = torch.backends.cudnn.conv.fp32_precision
    with full_precision():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == before
