"""The benchmark of kept features: a run, and its ratios."""

from benchmarks.speed.frozen import JOBS, main, table


def test_a_run_measures_steps_and_what_is_beside_them(capsys):
    small = ["--num_images=8", "--num_classes=2", "--batch_size=4", "--embedding_size=2"]
    found = main([*small, "--num_steps=2", "--rounds=1"])
    assert list(found) == list(JOBS) and all(len(each) == 1 for each in found.values())
    assert "| bare |" in capsys.readouterr().out


def test_the_ratios_are_those_of_the_best_rounds():
    seconds = {"bare": [2.0, 4.0], "steps": [5.0, 3.0], "run": [1.0]}
    rounds = {name: [{"cpu_seconds": x} for x in found] for name, found in seconds.items()}
    lines = table(rounds, 6000).splitlines()
    assert lines[-3].startswith("| bare | 2.00 | 1.00 | 3,000 |")
    assert lines[-2].startswith("| steps | 3.00 | 1.50 | 2,000 |")
    assert lines[-1].startswith("| run | 1.00 | 0.50 |  |")
