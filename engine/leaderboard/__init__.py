"""The leaderboard: methods compared by one protocol, from a board to its table.

boards/      what is compared: the YAML file of a board, lengths of trainings, spaces of settings
trainings/   the trainings of a board: which there are, what they have come to, who does them
tables/      what the rows have reached, which of them differ, and the files that say so
pages/       board.html

leaderboard  what leaderboard.py does. launch: the processes of a board. live: how far they are
dry_run      what it would do. estimate: what that would take
origin       images and weights that results are of. own_data: without a board
"""
