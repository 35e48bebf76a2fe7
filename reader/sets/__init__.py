"""The image sets: the images of a split, from folders, lists and the files of benchmarks."""
