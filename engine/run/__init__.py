"""What a run leaves behind, and how it goes on.

run_folder.py   arguments, log, statistics and curves
tracking.py     Weights & Biases, MLflow and others
records.py      the records of a run, read again
checkpoints.py  whole and checked files that a run resumes from
chosen.py       how a checkpoint came to be the one of its run
resume.py       where a training begins
identity.py     what a run is, so that no other command takes it up
signals.py      how signals stop it between two steps
lines.py        lines of its log
"""
