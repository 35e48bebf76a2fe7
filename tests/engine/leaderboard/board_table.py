"""Tables of boards for the tests of their page, and the run folders that they name."""

import json
import re
from pathlib import Path

ODD = "<b>\"a\" & 'b'</b> $x$ \u65e5\u672c\u8a9e {{ row }}\nline </script><script>alert(1)</script>"
LONG = "a_method_whose_name_has_sixty_letters_" + "and_no_end_at_all_____"
PROTOCOL = {
    "folds": 2,
    "trials": 3,
    "reserve": 1,
    "seeds": 2,
    "search": "sobol",
    "baseline": "softmax",
    "closed": False,
}


def figure(mean: float, reach: float = 0.02) -> dict:
    return {
        "mean": mean,
        "deviation": 0.004,
        "low": mean - reach,
        "high": mean + reach,
        "by_seed": [mean - 0.003, mean + 0.003],
    }


def contrast(difference: float, reach: float = 0.02) -> dict:
    return {
        "difference": difference,
        "low": difference - reach,
        "high": difference + reach,
        "p": 0.01,
        "p_holm": 0.02 if abs(difference) > reach else 0.5,
        "is_significant": abs(difference) > reach,
    }


def trial(number: int, value: float | None, failure: str | None = None) -> dict:
    folds = [None, None] if failure or value is None else [value - 0.01, value + 0.01]
    return {
        "settings": {"lr": f"{0.001 * 4**number:.3g}", "margin": ("a", "0.5")[number % 2]},
        "value": 0.0 if failure else value,
        "folds": folds,
        "failure": failure,
    }


def make_row(name: str, recall: float | None = None, **others) -> dict:
    """A row as `results_of` describes it; without a recall it is not done yet."""
    trials = [trial(0, 0.2), trial(1, 0.25), trial(2, None, "its first fold stays near chance")]
    slug = re.sub(r"[^\w.+-]+", "_", name).strip("_.")
    row = {
        "name": name,
        "start": None,
        "length_of": None,
        "is_frozen": False,
        "published": {},
        "space": ["lr: 0.001 to 0.1 (log)", "margin: a, 0.5"],
        "settings": dict(trials[1]["settings"]),
        "validation": 0.25,
        "widened": [],
        "at_edge": [],
        "failure": None,
        "trials": trials,
        "commands": [f"python train_elem.py --seed={seed} --lr=0.004" for seed in (0, 1)],
        "runs": [f"runs/{slug}/seed_{seed}-0123abcd" for seed in (0, 1)],
        "images": 1600.0,
        "minutes": 2.5,
        "memory_mib": 1024.0,
        "hosts": ["a host, 1 of 2 cores"],
    }
    if recall is None:
        row |= {"runs": [], "commands": [], "settings": {}, "validation": None, "images": 0.0}
    else:
        row["figures"] = {"recall@1": figure(recall), "map@r": figure(recall / 2)}
    return row | others


def make_table(rows: list[dict], **others) -> dict:
    """A table as `results_of` returns it, its contrasts filled in."""
    known = {row["name"]: row["figures"]["recall@1"]["mean"] for row in rows if "figures" in row}
    best = max(known, key=known.__getitem__) if known else None
    for row in rows:
        for kind, other in (("to_baseline", PROTOCOL["baseline"]), ("to_best", best)):
            if row["name"] in known and other in known and row["name"] != other:
                difference = known[row["name"]] - known[other]
                row[kind] = {m: contrast(difference) for m in ("recall@1", "map@r")}
    return {
        "board": "tiny",
        "title": "A board",
        "data": {"dataset": "demo"},
        "protocol": dict(PROTOCOL),
        "best": {} if best is None else dict.fromkeys(("recall@1", "map@r"), best),
        "rows": rows,
        "done": 20,
        "total": 40,
        "is_finished": True,
    } | others


def usual_rows() -> list[dict]:
    """Rows of all states: done, of two stages with what stands beside, frozen, failed, open."""
    source = "Table 2 of https://example.org/a?b=1&c=2."
    return [
        make_row(
            "softmax, eml", 0.8, start="softmax", published={"recall@1": "79.3", "source": source}
        ),
        make_row("softmax, for 60 steps", 0.74, length_of="softmax, eml"),
        make_row("softmax", 0.73, widened=["lr above 0.1"], at_edge=["lr"]),
        make_row(
            "untrained", 0.4, is_frozen=True, trials=[], space=[], validation=None, settings={}
        ),
        make_row("broken", failure="ValueError: <i>no</i> such loss"),
        make_row("later"),
    ]


def write_run(folder: Path, num_records: int = 1000, recall: bool = False) -> None:
    """Write what the page reads of a run folder: records, flags, outcome and log."""
    folder.mkdir(parents=True)
    records = [
        {"kind": "train", "step": 10 * n, "loss": 4.0 / n} | ({"recall": 0.5} if recall else {})
        for n in range(1, num_records + 1)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "stats.jsonl").write_text(text)
    (folder / "args.json").write_text(json.dumps({"flags": {"train_batch_size": 40}}))
    outcome = {"metrics": {"recall@1": 0.7, "recall@1_chance": 0.0175}, "minutes": 1.0}
    outcome |= {"memory_mib": 1.0, "images": 40.0, "host": "h"}
    (folder / "result.json").write_text(json.dumps(outcome))
    (folder / "log.txt").write_text("a line\n")
