"""Counting similarities of all pairs of images, exactly and without a matrix of them.

- thresholds: what is counted, for ranks and for verification, and the `Counter` that counts it.
- choose: which counter serves a device. cpu: the compiled one. by_torch: that for all others.
- bins: of similarities, for verification. full_precision: torch's products without TF32.
"""
