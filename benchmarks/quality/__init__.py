"""What the losses reach on real images, over seeds.

cub50.sh         the two stages on those classes
cifar10.sh       CIFAR-10 by five methods
seed_table.py    mean and deviation over seeds, as a table
"""
