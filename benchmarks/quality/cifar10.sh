#!/usr/bin/env bash
# CIFAR-10 by the five methods of configs/cifar10_*.yaml: runs, reports, and their table.
# Usage: benchmarks/quality/cifar10.sh [--flag=value ...]; the flags are those of training. Everything lands
# in output/cifar10, or the folder OUT, which must not hold such runs already.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
out=${OUT:-output/cifar10}
methods="siamese triplet arcface cosface sphereface"

for method in $methods; do
    case $method in
        siamese | triplet) script=train_pair.py ;;
        *) script=train_elem.py ;;
    esac
    $python $script --config="configs/cifar10_$method.yaml" --model_save_dir="$out" \
        --run_name="$method" "$@"
    $python eval.py --pretrained_model="$out/$method/last.pt" --batch_size=200 \
        --json="$out/$method.json"
    $python -m metric_learning report "$out/$method/last.pt"
done
# shellcheck disable=SC2086  # one word per method
$python -m benchmarks.quality.seed_table "$out" $methods --metrics=recall@1,recall@10,map@r
