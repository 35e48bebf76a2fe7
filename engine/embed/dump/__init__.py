"""The dump of infer.py: features of any number of images in files, written as they are computed.

layout.py   which files there are, and which images are in which
plan.py     what is dumped of which images, by which unfinished work is recognised
partial.py  the unfinished work: rows that are computed, and which those are
work.py     computes what is missing, shared among all processes
precision.py fewer bits, and what they cost
lines.py    the reference's lines on the screen
digits.py   the text of features, as NumPy writes it
tables.py   the dump as tables that other programs read
finish.py   the finished files take their places
shards.py   the features as one array, whatever the files
opened.py   the features with the paths and labels of their images
write.py    all of it, in order
given.py    a dump that is taken in place of the work
"""

from metric_learning.engine.embed.dump.finish import DUMP
from metric_learning.engine.embed.dump.layout import FEATURES, LABELS, META, PARTIAL, PATHS
from metric_learning.engine.embed.dump.write import dump_features

__all__ = ["DUMP", "FEATURES", "LABELS", "META", "PARTIAL", "PATHS", "dump_features"]
