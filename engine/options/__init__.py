"""From the command line to frozen options: the one place where an option may depend on another.

tables.py           the flags of all scripts, without anything heavy
signatures.py       options of the losses, read in their source
training_table.py   the flags of a training script, the options of its losses among them
parts.py            frozen options, one part for each of those who need them
training.py         settles the options of a training: flags, checkpoint and data
evaluation.py       settles those of evaluation, inference and report
"""
