"""The one training loop of both stages.

train.py       the loop: all that happens, in the order in which it happens
step.py        one update of the weights by one batch
stages.py      what is special about each stage: its batches, and what its loss is called with
start.py       from flags to everything that a run consists of
run.py         a run, and what happens between its steps: log lines, tests, checkpoints
learner.py     what is trained: network, loss, optimizer
criterion.py   the loss, with what lies around it
optimizers.py  the optimizers
watch.py       what stage 2 starts from, and whether it ruins that
needs.py       what a run needs of its machine: memory and time
images.py      the cache of decoded images, and images that cannot be read
"""
