"""Weights files of any origin, read without running code, into a model and out of it.

- load: a file into a model, and a model into a file; begin here.
- files: the form of a file, and its tensors by name.
- torch_file, checksum: torch's forms, and ours of safetensors, checked byte for byte.
- groups, match: the dicts of tensors in a file, and where in them a network lies.
- paddle: PaddlePaddle's forms, and timm's names of its variables.
- fingerprint: identifies weights, whatever the name of their file.
"""
