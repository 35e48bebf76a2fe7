"""The table of a board.

standings  figures, intervals and differences
results    the table, with all that it rests on
formats    as Markdown, CSV, LaTeX and JSON
"""
