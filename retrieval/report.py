"""python -m retrieval.report, by which `metric-learning report` was known before version 0.2."""

import runpy

if __name__ == "__main__":
    runpy.run_module("metric_learning.engine.report", run_name="__main__")
