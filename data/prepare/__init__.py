"""Lists of one's own images: scan folders, filter, split into classes and folds.

__main__.py  python -m data.prepare COMMAND: the flags of each command
commands.py  the commands
scan.py      a tree of images, described image by image
hashes.py    perceptual hashes, and images whose hashes are close
filter.py    which images to remove: broken ones, wrong sizes, near duplicates
ties.py      what keeps images on one side: groups and near duplicates
splits.py    images divided into train, val and test by class or within classes, and into folds
"""
