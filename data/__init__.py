"""Data sets, which git ignores, and how to get them.

download.py   python data/download.py: fetches the public ones
make_demo.py  python data/make_demo.py: draws the demo data set
draw/         the pictures of the demo data set
prepare/      python -m data.prepare: makes a data set of a folder of images
"""
