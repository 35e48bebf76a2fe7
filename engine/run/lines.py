"""The lines of a training in its log: the reference's, and what follows them."""

from __future__ import annotations

from collections.abc import Mapping

# Figures of a step that follow the reference's line, in this order.
FOLLOWING = ("wait", "norm", "d2_pos", "d2_neg", "size", "loss_distill")


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds, such as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def progress(step: int, total: int, seconds_left: float) -> str:
    """Say how far a run is, and when it ends."""
    return f"step {step}/{total}, eta {duration(seconds_left)}"


def training_line(
    step: int, rate: float, means: Mapping[str, float], seconds: float, following: str
) -> str:
    """Return the reference's line of training steps; behind its end, what it does not have."""
    # v1's line has the parts of a joint loss instead of the loss.
    hidden = {"loss", *FOLLOWING} if "loss_metric" in means else {*FOLLOWING}
    figures = ", ".join(
        f"{name} {value:.{6 if name.startswith('loss') else 4}f}"
        for name, value in means.items()
        if name not in hidden
    )
    others = "".join(
        f"{name} {means[name]:{'.4f' if name == 'wait' else '.4g'}}, "
        for name in FOLLOWING
        if name in means
    )
    return (
        f"trainbatch {step}, lr {rate:.6f}, {figures}, time {seconds:.2f} sec, {others}{following}"
    )
