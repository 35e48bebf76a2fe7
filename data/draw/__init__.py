"""The drawn data set of the demo.

shapes.py    simple shapes and patterns on a canvas
products.py  products of five kinds, composed of them
views.py     a product in some pose, place and light
"""
