"""From image sets to batches on the device.

samplers.py     which images each step takes, from labels, a seed and the step alone
loader.py       training and test batches, read by workers, and their way to the network's inputs
workers.py      the processes that read: how they start, and how they end
on_device.py    images that the device resizes, or decodes too
resize.py       crops of many sizes, resized at once
cache.py        decoded training images in one file, mapped into memory
cache_build.py  builds that file, or goes on building it
"""
