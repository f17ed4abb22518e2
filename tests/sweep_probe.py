"""Memory a sweep takes beyond what the process held before its model was built; run as a process.

python -m tests.sweep_probe TRUNK PIXELS WAY    prints bytes measured and bytes the plan states
"""

import re
import sys
from pathlib import Path

import torch

from tests import trunks
from workers.methods.base import Scene
from workers.methods.occlusion import Occlusion
from workers.models.base import freeze
from workers.models.kazemi import Kazemi, KazemiConfig
from workers.models.trunks import TRUNKS
from workers.sweep.engine import Engine, Options


def resident() -> int:
    """Peak so far, in bytes; ``getrusage`` would count the parent's from before the start."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def main(trunk: str, pixels: int, way: str) -> None:
    torch.set_num_threads(1)
    TRUNKS.setdefault(trunk, lambda _: trunks.network(trunk))
    swept("small", 48, way)  # loads and compiles what every sweep needs
    before = resident()
    stated = swept(trunk, pixels, way)
    print(resident() - before, stated)


def swept(trunk: str, pixels: int, way: str) -> int | None:
    """Explain one image; returns the bytes stated."""
    config = KazemiConfig(
        trunk=trunk, image_size=pixels, words=("what",), answers=tuple(map(str, range(100)))
    )
    model = freeze(Kazemi(config))
    engine = Engine(model, Options(way=way))  # type: ignore[arg-type]
    occlusion = Occlusion(grid=8)
    (request,) = occlusion.sweeps(model.geometry)
    canvas = 255 * torch.rand(3, pixels, pixels)
    occlusion.explain(Scene(model, canvas, [("what",)], [1], [0], engine=engine))
    return engine.choice(request).peak_bytes


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
