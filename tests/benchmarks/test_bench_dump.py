"""The benchmark of dumps: a round, and its shares."""

from benchmarks.speed.dump import JOBS, main, table


def test_a_round_measures_a_dump_beside_the_forward_pass(capsys):
    small = ["--model=test_resnet", "--num_images=6", "--image_size=32", "--batch_size=4"]
    found = main([*small, "--rounds=1"])
    assert list(found) == list(JOBS) and all(len(each) == 1 for each in found.values())
    out = capsys.readouterr().out
    assert "| printed |" in out and "Test-0" not in out


def test_a_share_is_the_median_of_those_of_the_rounds():
    seconds = {"bare": [2.0, 4.0, 3.0], "silent": [4.0, 4.0, 3.0], "printed": [4.0, 8.0, 6.0]}
    rounds = {
        name: [{"cpu_seconds": x, "wall_seconds": 2 * x, "main_seconds": x / 2} for x in found]
        for name, found in seconds.items()
    }
    lines = table(rounds, 120).splitlines()
    assert lines[-3].startswith("| bare | 20 | 1.000 | 40 | 1.000 |")
    assert lines[-2].startswith("| silent | 15 | 1.000 | 30 | 1.000 |")
    assert lines[-1].startswith("| printed | 10 | 0.500 | 20 | 0.500 | 4.00, 8.00, 6.00 | 2.00, ")
