"""Data sets that are drawn.

shapes.py    simple shapes and patterns on a canvas
products.py  products of five kinds, composed of them
views.py     a product in some pose, place and light
glyphs.py    characters in typefaces
drawn_set.py the folder of a drawn set, and what made it
"""
