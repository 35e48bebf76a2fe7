"""Near duplicates among features that infer.py wrote, or between two such folders.

python -m retrieval.duplicates FEATURES [--threshold=0.95] [--output=found.csv] [--kept=kept.csv]
python -m retrieval.duplicates FEATURES --against=FEATURES
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("metric_learning.engine.search.duplicates", run_name="__main__")
