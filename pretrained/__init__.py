"""Pretrained weights, which git ignores, and how to get them.

fetch_weights.py  python pretrained/fetch_weights.py: fetches ImageNet weights, converts others
"""
