"""Devices, and the processes that torchrun starts.

world.py          this process's place among all, how they meet and part
collectives.py    what they tell each other; all of it works in one process too
devices.py        where and in which precision a process computes
sharded_head.py   the class layer of stage 1 split over the processes
"""
