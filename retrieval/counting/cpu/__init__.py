"""Compiled counting on all cores of the CPU (numba).

- compiled: the counter. tiles: who computes which tile of similarities on which thread.
- products: ways to compute a tile, of different speed and precision; screen: the fastest of them,
  by int16; sliced: by two slices of int16, nearly exact.
- kernels: the loops that compare a tile with thresholds; many_positives: those for queries with
  many of them; sorting: of these. histogram: the loops that count the similarities of negative
  pairs in bins.
- near: all pairs above a cosine. sketches: short vectors that bound cosines, so that most pairs are
  left out.
- vectors: embeddings and tiles as these loops see them. instructions: vector instructions for them.
  jit: how they are compiled, and where the result is kept.
"""
