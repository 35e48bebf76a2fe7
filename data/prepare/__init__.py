"""Lists of one's own images: scan folders, filter, split into classes and folds."""
