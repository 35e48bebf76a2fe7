"""Time and memory of what this project does, beside the same work done in other ways.

reader.py       training images from files
train.py        training steps
frozen.py       training steps on kept features of a frozen backbone
retrieval.py    exact ranks, by the ways of retrieval_methods.py
few_classes.py  exact ranks of few large classes, beside those of many small ones
groups.py       exact ranks with groups, whose images are left out, beside those without
shard.py        a class layer split over processes
dump.py         a dump of features, beside the bare forward pass
door.py         what a wrong flag and --help cost
"""
