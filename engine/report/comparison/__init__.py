"""Several models on the same images, side by side.

models.py  which models: the given ones, and what the first of them began with
flips.py   the queries that one model finds and the other does not
page.py    the page
"""
