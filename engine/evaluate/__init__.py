"""Scores of a split.

evaluate.py        what eval.py does
measures.py        what is measured, and how it is said
scoring.py         a score for every query
classification.py  accuracy where a class layer knows the classes
compare.py         whether one checkpoint beats another
embeddings.py      embeddings, from the model, a file that keeps them, or a dump
open_set.py        scores of queries that may be of no class
caveats.py         warnings about figures that mean little
neighbours.py      a picture of queries and what they find
lettering.py       names of classes in pictures
origin.py          what a result depends on
"""
