"""The trainings of a board.

tasks     their flags, and the run folders that are named after these
plan      which there are, and which are open
outcomes  what they have come to
claims    who does what, among processes that share a folder
work      one process, which does what is open
"""
