"""Models ready for use, the embeddings of image sets, and what is written of them.

infer.py        what infer.py does
embedder.py     a model with its weights and image pipeline
network.py      a model with random weights, or with a backbone that is shared
class_layer.py  the class layer of a weights file
embedding.py    the embeddings of an image set
features.py     embeddings kept in a file, computed once
frozen.py       features of a frozen backbone, kept for all runs that train a head on them
dump/           embeddings in files and on the screen, of any number of images
duplicates.py   near duplicates among dumped embeddings
search.py       search indexes, built and asked
export.py       the model as one file that runs without this project
"""
