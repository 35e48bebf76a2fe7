"""Weights files of any origin, read without running code, into a model and out of it.

- load: a file into a model, and a model into a file; begin here.
- files: the form of a file, and its tensors by name.
- paddle: PaddlePaddle's forms, and timm's names of its variables.
- fingerprint: identifies weights by their tensors, whatever file these lie in.
"""
