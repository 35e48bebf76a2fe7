#!/usr/bin/env bash
# Tables on the first 50 classes of CUB-200-2011: frozen, stage 1, stage 2, over seeds.
# Usage: benchmarks/quality/cub50.sh [SEED ...]; runs and results land in output/cub50, which must not hold
# runs of the same seeds already.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=output/cub50

$python eval.py --config=configs/cub50_frozen.yaml --json=$out/frozen.json
for seed in "${@:-0}"; do
    stage_1=$out/arcmargin_$seed
    $python train_elem.py --config=configs/cub50_arcmargin.yaml --seed="$seed" \
        --run_name="arcmargin_$seed"
    $python eval.py --pretrained_model="$stage_1/last.pt" --batch_size=50 --ks=2,4,8 \
        --json="$stage_1.json"
    for loss in triplet quadruplet eml npairs; do
        $python train_pair.py --config="configs/cub50_$loss.yaml" --seed="$seed" \
            --pretrained_model="$stage_1/last.pt" --run_name="${loss}_$seed"
        $python eval.py --pretrained_model="$out/${loss}_$seed/last.pt" --batch_size=50 \
            --ks=2,4,8 --json="$out/${loss}_$seed.json"
    done
done
