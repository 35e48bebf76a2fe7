"""Models ready for use, the embeddings of image sets, and what is written of them.

embedder.py     a model with its weights and image pipeline, for scripts and programs
load.py         its parts, of a weights file
network.py      a model with random weights, or with a backbone that is shared
class_layer.py  the class layer of a weights file
embedding.py    the embeddings of an image set
features.py     embeddings kept in a file, computed once
frozen.py       features of a frozen backbone, kept for all runs that train a head on them
dump/           embeddings in files and on the screen, of any number of images
export.py       the model as one file that runs without this project
"""
