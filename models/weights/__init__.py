"""Weights files of any origin, read without running code, into a model and out of it."""
