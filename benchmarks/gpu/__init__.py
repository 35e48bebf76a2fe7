"""Does all of the project work on a GPU, and how fast: python -m benchmarks.gpu.check --out=FOLDER.

check.py      runs the sections, each in a process of its own
section.py    what a section works with: device, sizes, time; it notes what it finds
images.py     draws the images; nvJPEG
losses.py     every loss against the CPU; its speed
training.py   both stages in every way, torch.compile, resuming, waits, gradient caching
machine.py    versions, precision, the project's own tests, ceilings
processes.py  collectives, two processes
speed.py      training steps, embeddings and exact ranks per second
"""
