"""How tests build all that a training consists of."""

import train_elem
import train_pair
from metric_learning.engine.options.training_table import ELEM, PAIR, parse_training
from metric_learning.engine.parallel.world import World
from metric_learning.engine.run.signals import StopRequest
from metric_learning.engine.train import stages
from metric_learning.engine.train.start import start_run


def build_run(script, argv):
    """Build all that a training script trains with, as its flags say."""
    table, stage = (ELEM, stages.ELEM) if script is train_elem else (PAIR, stages.PAIR)
    assert script in (train_elem, train_pair)
    flags = parse_training("", table, script.FLAGS, argv)
    return start_run(flags, stage, World(), StopRequest(World()))
