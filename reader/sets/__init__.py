"""The image sets: the images of a split, from folders, lists and the files of benchmarks.

datasets.py      the table of data sets; `load_image_set` opens a split of any of them
image_set.py     what it returns: paths, labels, and how an image file becomes pixels
formats.py       which image files are opened
boxes.py         parts of photos that are images of their own
exif.py          the orientation of an image
jpeg_head.py     the segments of a JPEG file
jpeg_damage.py   finds holes in the data of a JPEG file
describe.py      what every script says first of its image sets
folds.py         folds of the training images, one of them held out
table.py         what a reader below returns, and the choice of classes in it
folders.py       class trees, divided into splits or not, and Omniglot
lists.py         Stanford Online Products, In-Shop and `path label` lines
csv_files.py     CSV files of images
cub_cars.py      CUB-200 of 2010 and 2011, and Cars196
cifar10.py       CIFAR-10
plain_images.py  images without labels
listed.py        their paths in lists, CSV files and tar archives
walk.py          the one walk through folders of images
left_out.py      the account of what it, or a list, leaves out
locate.py        finds the images that a list names
text.py          text from outside, and cells that mean the same
read_mat.py      MATLAB files, in a process of their own
snapshots.py     what images hold, so that kept things recognise them
image_files.py   reads many files in several processes, in whatever state they are
"""
