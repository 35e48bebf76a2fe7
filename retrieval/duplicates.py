"""python -m retrieval.duplicates FEATURES: near duplicates among features that infer.py wrote."""

import runpy

if __name__ == "__main__":
    runpy.run_module("metric_learning.engine.embed.duplicates", run_name="__main__")
