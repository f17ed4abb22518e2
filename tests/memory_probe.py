"""Peak resident memory of a worker that explains and evaluates N examples; run as a process.

python -m tests.memory_probe N WORLD CHECKPOINT RUN
"""

import resource
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from pipeline.plan import method_definitions, metric_definitions
from pipeline.recipe import parse
from schemas.run import RunRecord
from schemas.shard import Task, partition
from workers import catalog
from workers.datasets.shapes import Shapes
from workers.evaluate import Evaluator
from workers.explain import Explainer
from workers.models.digest import weights_digest
from workers.store import Store


def main(count: int, world: Path, checkpoint: Path, run: Path) -> None:
    dataset = {"name": "shapes", "root": str(world), "scenes": 8, "seed": 3}
    config = parse(
        {
            "dataset": dataset,
            "model": {"name": "kazemi", "checkpoint": str(checkpoint)},
            "methods": {"occlusion": {"grid": 2}, "saliency": {}, "word_gradient": {}},
            "metrics": {"rank_correlation": {}},
            "resources": {"executor": "local"},
        },
        "memory probe",
    )
    originals = list(Shapes(root=world, scenes=8, seed=3).examples())
    examples = [
        replace(example, question_id=i, image_id=i // 3)
        for i, example in zip(range(count), cycle(originals), strict=False)
    ]
    shards = partition(examples, 32)
    store = Store(run)
    model = catalog.model_spec(config.model).build(catalog.pick_device(config.resources.device))
    store.create(
        RunRecord(
            recipe={},
            dataset="",
            model=weights_digest(model),
            targets=("predicted", "truth"),
            shard_size=32,
            shards=len(shards),
            capacity=shards[0].capacity,
            examples=count,
            images=count // 3,
        )
    )
    explainer = Explainer(config, str(run))
    methods = catalog.methods(config.methods)
    store.define([*method_definitions(config, methods, model), *metric_definitions(config)])
    for shard in shards:
        assert explainer.run(Task(shard=shard, labels=tuple(methods))).failed == 0
    evaluator = Evaluator(config, str(run))
    for shard in shards:
        labels = ("rank_correlation:saliency", "rank_correlation:human")
        task = Task(shard=shard, labels=labels, decoys=shard.examples)
        assert evaluator.run(task).failed == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    number, *places = sys.argv[1:]
    main(int(number), *map(Path, places))
