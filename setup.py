"""The wheel: the folders of the checkout become the rooms of one package, metric_learning."""

from setuptools import find_packages, setup

ROOMS = ("common", "losses", "models", "reader", "retrieval", "engine", "data", "pretrained")

CONFIGS = ("configs", "configs.boards", "configs.recipes")

found = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
setup(packages=["metric_learning", *(f"metric_learning.{name}" for name in (*found, *CONFIGS))])
