"""A sweep's time over its arithmetic floor, on a GPU or on this machine's CPU.

    python benchmarks/floor.py --trunk resnet50 --px 448 --precision bfloat16 --device cuda

The floor is the multiply-adds of the schedule at the rate of a large matrix product, measured here
in the same precision: what the hardware would need if convolutions ran like that product and
nothing else took time. Prints one line of JSON; whole passes of the same trunk beside it.
"""

import json
import platform
from argparse import ArgumentParser, Namespace

import torch
from against_captum import QUESTIONS, kazemi, scene

from workers.catalog import pick_device
from workers.methods.occlusion import Occlusion
from workers.sweep.engine import Engine, Options
from workers.sweep.machine import fingerprint, seconds
from workers.sweep.precision import arithmetic, working_type
from workers.sweep.windows import Request


def options() -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trunk", default="resnet50", help="any of torchvision's, or our own")
    parser.add_argument("--px", type=int, default=448)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=32, help="whole images at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def matmul_rate(device: torch.device, chosen: Namespace) -> float:
    """Multiply-adds a second of a large square product."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = working_type(chosen.precision, torch.float32)
    a = torch.randn(side, side, device=device).to(dtype)  # of ones it would be faster
    with arithmetic(chosen.precision):
        return side**3 / seconds(lambda: a @ a, device)


def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    device = pick_device(chosen.device)
    model = kazemi(chosen.trunk, chosen.px).to(device)
    engine = Engine(model, Options(precision=chosen.precision, batch=chosen.batch))
    occlusion = Occlusion(grid=chosen.grid)
    ((windows, _),) = occlusion.sweeps(model.geometry)
    choice = engine.choice(Request(windows))
    schedule = engine.schedule(Request(windows))
    asked = scene(model, QUESTIONS[:1], engine=engine, batch=chosen.batch)

    def sweep() -> object:
        asked.shared.clear()
        return occlusion.explain(asked)

    with torch.inference_mode():
        spent = seconds(sweep, device, chosen.repeats)
    rate = matmul_rate(device, chosen)
    line = {
        "trunk": chosen.trunk,
        "px": chosen.px,
        "precision": chosen.precision,
        "engine": choice.way,
        "sweep_ms": 1e3 * spent,
        "floor_ms": 1e3 * schedule.macs / rate,
        "over_floor": spent * rate / schedule.macs,
        "whole_passes_ms": 1e3 * (choice.seconds or 0) * choice.speedup,
        "flop_ratio": schedule.flop_ratio,
        "matmul_tflops": 2 * rate / 1e12,
        "machine": f"{fingerprint(device)}; Python {platform.python_version()}",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
