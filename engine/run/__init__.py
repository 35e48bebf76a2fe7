"""The run folder: log, records, checkpoints, where a run resumes, and signals."""
