"""What is compared.

board    the YAML file of a board: data, protocol, rows
lengths  how long trainings are, in the flags that say so
space    what the settings of trials may be
"""
