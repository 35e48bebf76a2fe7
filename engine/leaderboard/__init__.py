"""The leaderboard: methods compared by one protocol, from a board to its table.

board        what is compared: the YAML file of a board. lengths: how long its trainings are.
             space: what their settings may be
tasks        the trainings of a row. plan: which there are, and which are open.
             outcomes: what they have come to
work         one process that does what is open. claims: who does what. launch: the processes.
             live: how far they are
standings    figures, intervals and differences. results: the table. formats: as it is written
leaderboard  what leaderboard.py does. dry_run, estimate: what it would take.
             origin: images and weights that it is of. own_data: without a board
page         board.html. cells: its table. drawings: intervals and trials. trials: what was tried.
             curves: how trainings went. reports: what its links lead to
"""
