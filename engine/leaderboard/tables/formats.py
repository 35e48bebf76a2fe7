"""The table of a board as Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metric_learning.common.atomic import write_csv, write_json, write_text
from metric_learning.common.log import versions
from metric_learning.engine.leaderboard.tables.standings import METRICS

COLUMNS = (
    *("name", "recall@1", "recall@1_deviation", "recall@1_low", "recall@1_high"),
    *("map@r", "map@r_deviation", "map@r_low", "map@r_high"),
    *("to_baseline", "to_baseline_low", "to_baseline_high", "to_baseline_p_holm"),
    *("to_best", "to_best_low", "to_best_high", "to_best_p_holm"),
    *("validation_map@r", "settings", "seeds", "images", "minutes", "memory_mib", "published"),
    *("source", "failure"),
)
SPECIAL_IN_TEX = re.compile(r"([&%$#_{}])")


def write_tables(found: Mapping[str, Any], folder: Path) -> None:
    """Write board.json, .csv, .md and .tex."""
    write_json(folder / "board.json", {**found, "versions": versions()})
    write_csv(folder / "board.csv", COLUMNS, [flat(row) for row in found["rows"]])
    write_text(folder / "board.md", markdown(found))
    write_text(folder / "board.tex", latex(found))


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the CSV file; figures are fractions."""
    cells: dict[str, Any] = {name: row.get(name) for name in COLUMNS if name in row}
    for metric, figure in row.get("figures", {}).items():
        cells |= {
            metric: figure["mean"],
            **{f"{metric}_{part}": figure[part] for part in ("deviation", "low", "high")},
            "seeds": len(figure["by_seed"]),
        }

    for kind in ("to_baseline", "to_best"):
        contrast = row.get(kind, {}).get("recall@1")
        cells[kind] = contrast and contrast["difference"]
        for part in ("low", "high", "p_holm"):
            cells[f"{kind}_{part}"] = contrast and contrast[part]
    cells["validation_map@r"] = row["validation"]
    cells["settings"] = settings_text(row)
    cells["published"] = row["published"].get("recall@1")
    cells["source"] = row["published"].get("source")
    return cells


def settings_text(row: Mapping[str, Any]) -> str:
    """Return the settings that were chosen, as flags."""
    return " ".join(f"--{name}={text}" for name, text in row["settings"].items())


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction in percent, without the sign."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def figure_text(figure: Mapping[str, Any]) -> str:
    """Return mean and deviation of the seeds in percent."""
    deviation = figure["deviation"]
    return percent(figure["mean"]) + (f" ± {percent(deviation)}" if deviation is not None else "")


def range_text(found: Mapping[str, Any]) -> str:
    """Return an interval in percent."""
    if found["low"] is None:
        return "–"
    return f"{percent(found['low'])} to {percent(found['high'])}"


def contrast_text(contrast: Mapping[str, Any] | None) -> str:
    """Return a difference in points, with its interval; a star where it is significant."""
    if contrast is None:
        return ""
    star = "*" if contrast["is_significant"] else ""
    interval = "" if contrast["low"] is None else f" ({range_text(contrast)})"
    return f"{100 * contrast['difference']:+.1f}{star}{interval}"


def is_clear_best(found: Mapping[str, Any], metric: str) -> bool:
    """Whether the best row of a metric is significantly above all others."""
    others = [
        row["to_best"][metric]["is_significant"]
        for row in found["rows"]
        if metric in row.get("to_best", {})
    ]
    return bool(others) and all(others)


def header(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns of the table that people read."""
    baseline = found["protocol"]["baseline"]
    names = ["", "Recall@1", "95 % interval", "MAP@R"]
    names += [f"Recall@1 above {baseline}"] if baseline else []
    return [*names, "above the best", "images seen", "minutes", "MiB", "published"]


def cells_of(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row under `header`, without marks of the best."""
    has_baseline = found["protocol"]["baseline"] is not None
    ending = [f"{row['images']:,.0f}", f"{row['minutes']:.1f}", f"{row['memory_mib']:,.0f}"]
    ending.append(row["published"].get("recall@1", ""))
    name = f"beside it: {row['name']}" if row["length_of"] else row["name"]
    if "figures" not in row:
        blank = [""] * (3 if has_baseline else 2)
        return [name, row["failure"] or "not done yet", *blank, "", *ending]

    figures = row["figures"]
    contrasts = ["to_baseline", "to_best"] if has_baseline else ["to_best"]
    return [
        name,
        figure_text(figures["recall@1"]),
        range_text(figures["recall@1"]),
        figure_text(figures["map@r"]),
        *(contrast_text(row.get(kind, {}).get("recall@1")) for kind in contrasts),
        *ending,
    ]


def table_of(found: Mapping[str, Any], bold: tuple[str, str]) -> list[list[str]]:
    """Return the cells of all rows; a best value that is clear stands between two marks."""
    columns = {"recall@1": 1, "map@r": 3}
    clear = {m: found["best"].get(m) for m in METRICS if is_clear_best(found, m)}
    table = []
    for row in found["rows"]:
        cells = cells_of(row, found)
        for metric, name in clear.items():
            if row["name"] == name:
                column = columns[metric]
                cells[column] = f"{bold[0]}{cells[column]}{bold[1]}"
        table.append(cells)
    return table


def explanation(found: Mapping[str, Any]) -> list[str]:
    """Say how the figures came about, in a few sentences."""
    protocol = found["protocol"]
    unit = "images" if protocol["closed"] else "classes"
    searched = (
        f"Settings: {protocol['trials'] + protocol['reserve']} trials a row ({protocol['search']}, "
        f"{protocol['reserve']} of them around the best or beyond its edge), chosen by MAP@R on "
        f"{protocol['folds']} folds of training {unit}; then"
    )
    is_searched = any(row["space"] for row in found["rows"])
    lines = [
        f"{searched if is_searched else 'Settings are given;'} trained on all training {unit} with "
        f"{protocol['seeds']} seeds and measured once on the test.",
        f"± is the deviation over seeds. Intervals are over test {unit}, those of differences over "
        "seeds too. A star: significant at 5 %, corrected for the number of rows (Holm). Bold: "
        "significantly above all others.",
    ]

    for row in found["rows"]:
        said = [f"widened: {text}" for text in row["widened"]]
        said += [f"the best {name} is still the most extreme one tried" for name in row["at_edge"]]
        said += [row["failure"]] if row["failure"] and "figures" in row else []
        if said:
            lines.append(f"{row['name']}: {'; '.join(said)}.")
    sources = {row["published"]["source"] for row in found["rows"] if "source" in row["published"]}
    return lines + [f"Published figures: {source}." for source in sorted(sources)]


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table in Markdown, with what explains it."""
    names = header(found)
    lines = [
        f"# {' '.join(found['title'].split())}",
        "",
        f"| {' | '.join(names)} |",
        "|---|" + "--:|" * (len(names) - 1),
    ]
    for cells in table_of(found, ("**", "**")):
        escaped = (cell.replace("|", r"\|") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join([*lines, "", *(f"{line}\n" for line in explanation(found))])


def latex(found: Mapping[str, Any]) -> str:
    """Return the table as LaTeX's booktabs has it."""
    names = header(found)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
        " & ".join(map(in_tex, names)) + r" \\",
        r"\midrule",
    ]
    for cells in table_of(found, ("\0", "\1")):
        marked = (in_tex(cell).replace("\0", r"\textbf{").replace("\1", "}") for cell in cells)
        line = " & ".join(marked)
        # A bracket or a star would be an option of the line end before it.
        lines.append(("{}" if line[:1] in ("[", "*") else "") + line + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def in_tex(text: str) -> str:
    """Escape what LaTeX takes for commands."""
    escaped = SPECIAL_IN_TEX.sub(r"\\\1", text.replace("\\", "/"))
    for sign, word in (("±", r"$\pm$"), ("–", "--"), ("~", r"\textasciitilde{}"), ("^", r"\^{}")):
        escaped = escaped.replace(sign, word)
    return escaped
