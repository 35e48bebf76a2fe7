"""Counting similarities of all pairs of images, exactly and without a matrix of them."""
