"""The page of a board, board.html.

page      what it shows
cells     its table. drawings: intervals and trials in it
trials    what was tried. curves: how trainings went
reports   the reports that its links lead to
"""
