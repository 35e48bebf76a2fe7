"""What a result depends on, so that a table joins those that belong together."""

from __future__ import annotations

from typing import Any

from metric_learning.common.fingerprint import Snapshot
from metric_learning.engine.embed.embedder import Embedder
from metric_learning.engine.parallel.collectives import decide_on_main
from metric_learning.engine.run.identity import recipe_of
from metric_learning.reader import ImageSet
from metric_learning.reader.sets.snapshots import snapshot_of


def describe_origin(
    embedder: Embedder, image_set: ImageSet, snapshot: Snapshot | None = None
) -> dict[str, Any]:
    """Say what a result depends on: `depends_on`, its model and images, and the `recipe`.

    The recipe is all that the weights were trained with but the seed, see `recipe_of`. The
    `snapshot` is of the images, where the first process has taken one already.
    """
    world, average = embedder.work.machine.world, embedder.work.average
    recipe = recipe_of(embedder.work.meta)
    if recipe is not None and average is not None:
        recipe["--average_with_start"] = average.share
    images = decide_on_main(world, lambda: (snapshot or snapshot_of(image_set)).digest())
    return {
        "depends_on": {**embedder.depends_on, "images": images},
        "recipe": recipe,
    }
