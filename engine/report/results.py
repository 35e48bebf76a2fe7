"""Results of eval.py that a table joins, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metric_learning.common.fingerprint import first_difference
from metric_learning.common.schema import check_fields, is_object, read_json

# How the neighbours of a query are counted; a row of a table has to be by the rules of the others.
# Beside each is what it is in results of earlier versions, which lack some.
RULES = {"split": None, "ties": None, "distance": "cosine", "whiten": None, "rerank": None}


def read_result(file: Path) -> dict[str, Any]:
    """Read what eval.py --json wrote; ValueError where it does not say what it is a result of."""
    result = check_fields(read_json(file, str(file)), (), str(file))
    about = result.get("evaluated")
    about = about if isinstance(about, dict) else {}
    if not is_object(about.get("depends_on"), _is_fact) or not is_object(about.get("flags")):
        raise ValueError(
            f"{file} does not say what it is a result of, as those of earlier versions and of "
            "--compare do not: evaluate again, eval.py --json writes it"
        )
    return result


def _is_fact(value: Any) -> bool:
    return isinstance(value, str | int | None)


def check_joined(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ValueError where results are not of the same images by the same rules."""
    facts = {}
    for file, result in results.items():
        about = result["evaluated"]
        shared = {name: about["depends_on"].get(name) for name in ("images", "decoder")}
        rules = {f"--{name}": about["flags"].get(name, before) for name, before in RULES.items()}
        facts[file] = shared | rules
    _check_equal(facts, "cannot stand in one table")


def check_seeds(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ValueError where results of one row differ in anything but the seed."""
    if len(results) < 2:
        return
    facts = {}
    for file, result in results.items():
        about = result["evaluated"]
        is_random = about["flags"].get("pretrained_model") == "random"
        if about.get("recipe") is None and not is_random:
            raise ValueError(
                f"{file}: its weights do not say how they were trained, so that it cannot be one "
                "of several seeds: train and evaluate again, or give each result a row of its own"
            )
        how = {name: value for name, value in about["depends_on"].items() if name != "weights"}
        facts[file] = how | (about.get("recipe") or {"weights": "random"})

    _check_equal(facts, "are not seeds of one row")
    _check_different(
        {file: result["evaluated"]["depends_on"].get("weights") for file, result in results.items()}
    )


def _check_equal(facts: Mapping[Path, Mapping[str, Any]], what: str) -> None:
    first, *others = facts
    for file in others:
        other = first_difference(facts[first], facts[file])
        if other is not None:
            raise ValueError(f"{first} and {file} {what}: they differ in {other}")


def _check_different(weights: Mapping[Path, Any]) -> None:
    """Raise ValueError where two results are of the same weights, which are no two seeds."""
    seen: dict[Any, Path] = {}
    for file, found in weights.items():
        if found in seen:
            raise ValueError(f"{seen[found]} and {file} are results of the same weights")
        seen[found] = file


def read_joined(files: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Read results that are to stand in one table, see `check_joined`."""
    results = {file: read_result(file) for file in files}
    if results:
        check_joined(results)
    return results


def check_features(folder: Path, results: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ValueError where the features in a folder are of none of the models of results."""
    try:
        meta = read_json(folder / "meta.json", "meta.json")
        weights = meta["depends_on"]["weights"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder}/meta.json does not say of which weights the features are: run infer.py again"
        ) from error
    if weights not in [
        result["evaluated"]["depends_on"].get("weights") for result in results.values()
    ]:
        names = ", ".join(file.name for file in results)
        raise ValueError(
            f"the features in {folder} are of other weights than {names}: run infer.py again"
        )
