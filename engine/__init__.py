"""The engine: from flags to trainings, evaluations and dumps. A room uses those above it alone.

parallel/     devices and processes
options/      flags, and the frozen options that are settled from them
run/          what a run leaves behind, and how it goes on
embed/        models ready for use, and embeddings
search/       indexes, answers, near duplicates
evaluate/     scores
train/        the training loop
report/       pages and pictures of what came out
serve/        a search page and its JSON endpoint
leaderboard/  methods compared by one protocol
"""
