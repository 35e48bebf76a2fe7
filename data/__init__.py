"""The data sets: download, the drawn demo, preparation of one's own images."""
