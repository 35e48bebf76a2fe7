"""Train every loss with equal means on the first 50 classes of CUB-200-2011, and print the table.

python -m benchmarks.quality.cub50_losses

Every loss starts from the ImageNet weights and sees the same number of images with the same
optimizer. Its learning rate is the one of RATES that does best when it trains on classes 1-15 and
is tested on 16-25; with it, it trains on classes 1-25, once per seed, and is tested on 26-50.
Results that are in the output folder are not computed again, so that a run can be broken off; other
flags than before need another folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.seed_table import seed_table
from metric_learning import eval as evaluation
from metric_learning import train_elem, train_pair
from metric_learning.common.cli import user_errors
from metric_learning.common.flags import last_of_each, words_of
from metric_learning.losses import ELEM_LOSSES, PAIR_LOSSES, layout_of

WEIGHTS = "--pretrained_model=pretrained/mobilenetv2_100_imagenet.safetensors"
FLAGS = (
    *(WEIGHTS, "--dataset=cub200_2011", "--model=mobilenetv2_100", "--image_shape=3,96,96"),
    *("--min_crop_area=0.2", "--train_batch_size=30", "--total_iter_num=70", "--freeze_bn=True"),
    *("--optimizer=adam", "--lr_strategy=cosine_decay"),
    *("--test_iter_step=0", "--save_iter_step=0"),
)
RATES = ("3e-6", "1.2e-5", "5e-5", "2e-4")
METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r")
CLASS_RATE = "--lr_loss_mult=100"  # of class weights and proxies, which start at random
# What changes with the number of batches is made to fit a run of 70 of them, and a batch that must
# be made of two pairs of pairs has 28 images instead of 30, 75 times.
OPTIONS = {
    "vpl": ["--vpl_start=20", "--vpl_age=20"],
    "siamese": ["--train_batch_size=28", "--total_iter_num=75"],
}
# Rows beside the losses by themselves: the loss and its flags.
VARIANTS = {
    "contrastive, xbm": ("contrastive", ["--xbm_size=1024", "--xbm_start=20"]),
    "batch_triplet, semihard": ("batch_triplet", ["--mining=semihard"]),
    "batch_triplet, distance": ("batch_triplet", ["--mining=distance"]),
    "batch_triplet, soft margin": ("batch_triplet", ["--soft_margin=True"]),
    "triplet, alpha 0.1": ("triplet", ["--alpha=0.1", CLASS_RATE]),
}
ROWS = {
    **{name: (name, [CLASS_RATE, *OPTIONS.get(name, [])]) for name in ELEM_LOSSES},
    **{name: (name, OPTIONS.get(name, [])) for name in PAIR_LOSSES},
    **VARIANTS,
}


def main(argv: Sequence[str] | None = None) -> str:
    """Train and evaluate what is missing, then print and return the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        allow_abbrev=False,  # --seed is a flag of the scripts
    )
    parser.add_argument("--output", type=Path, default=Path("output/cub50_losses"))
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the final runs")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    chosen, words = parser.parse_known_args(words_of((), argv))  # other flags go to every script
    output: Path = chosen.output

    with user_errors():
        frozen = output / "frozen.json"
        if not frozen.exists():
            config = ["--config=configs/cub50_frozen.yaml", "--image_shape=3,96,96"]
            evaluation.main(last_of_each([*config, *words, f"--json={frozen}"]))
        rates = {}
        for row in chosen.rows:
            rates[row] = choose_rate(row, output, words)
            for seed in chosen.seeds.split(","):
                run(row, rates[row], seed, ("1-25", "26-50"), output, words)

        table = seed_table(output, ["frozen", *chosen.rows], METRICS)
        print(table)
        print("\nRates: " + ", ".join(f"{row} {rate}" for row, rate in rates.items()))
        return table


def choose_rate(row: str, output: Path, words: Sequence[str]) -> str:
    """Return the learning rate with the best Recall@1 on classes 16-25 after training on 1-15."""
    recalls = {
        rate: run(row, rate, "0", ("1-15", "16-25"), output / f"rate_{rate}", words)
        for rate in RATES
    }
    return max(recalls, key=recalls.__getitem__)


def run(
    row: str, rate: str, seed: str, classes: tuple[str, str], output: Path, words: Sequence[str]
) -> float:
    """Train and evaluate one loss on classes, unless its result is there; return its Recall@1."""
    result = output / f"{row}_{seed}.json"
    if not result.exists():
        loss_name, options = ROWS[row]
        script = train_elem if loss_name in ELEM_LOSSES else train_pair
        is_blocks = loss_name in PAIR_LOSSES and layout_of(loss_name) in ("blocks", "labels")
        if is_blocks and loss_name != "npairs":  # which takes pairs
            options = [*options, "--samples_each_class=3"]

        if (output / f"{row}_{seed}" / "args.json").exists():  # a run that was broken off
            shutil.rmtree(output / f"{row}_{seed}")
        own = [f"--loss_name={loss_name}", f"--lr={rate}", *options, f"--seed={seed}"]
        own += [f"--train_classes={classes[0]}", f"--model_save_dir={output}"]
        flags = [*FLAGS, *own, f"--run_name={row}_{seed}", *words]
        folder = script.main(last_of_each(flags))
        weights = f"--pretrained_model={folder / 'last.pt'}"
        tested = [f"--test_classes={classes[1]}", "--batch_size=50", "--ks=2,4,8"]
        evaluation.main(last_of_each([weights, *tested, *words, f"--json={result}"]))
        shutil.rmtree(folder)  # 27 MB each
    return float(json.loads(result.read_text("utf-8"))["recall@1"])


if __name__ == "__main__":
    main()
