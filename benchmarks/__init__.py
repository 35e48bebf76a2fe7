"""What was measured, and how. Run with -m from the checkout; results are in RESULTS.md.

speed/     time and memory beside those of peers: reading, training, retrieval, the command line
quality/   what the losses reach on real images, over seeds
gpu/       does it all work on a GPU, and how fast
common.py  clocks, turns and tables
"""
