"""Time and memory of what this project does, beside the same work done in other ways.

reader.py     training images from files, by the ways of reader_ways.py
train.py      training steps, by those of train_methods.py
retrieval.py  exact ranks, by those of retrieval_methods.py
shard.py      a class layer split over processes
door.py       what a wrong flag and --help cost
"""
