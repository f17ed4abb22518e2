"""Every way to a convolution gives the same sums, and the one that is used is chosen on a batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from workers.sweep.convolve import POSITIONS, TRIAL, Kernel
from workers.sweep.intervals import Support
from workers.sweep.operations import Convolution

CASES = {
    "3x3": (64, 64, 3, Support(3, 1, 1), 1),
    "3x3, stride 2": (64, 32, 3, Support(3, 2, 1), 1),
    "1x1": (64, 32, 1, Support(), 1),
    "1x1, stride 2": (64, 32, 1, Support(1, 2), 1),
    "grouped": (64, 64, 3, Support(3, 1, 1), 4),
    "image": (3, 32, 7, Support(7, 2, 3), 1),
}
"""Channels in and out, kernel, support, groups."""


def convolution(case: str) -> Convolution:
    c_in, c_out, kernel, support, groups = CASES[case]
    weight = torch.randn(c_out, c_in // groups, kernel, kernel) / (c_in * kernel**2) ** 0.5
    conv = Convolution(weight, torch.randn(c_out), (support, support), groups, relu=True)
    return conv.to(torch.device("cpu"), torch.float32)


def batch(images: int, conv: Convolution, side: int = 13) -> Tensor:
    channels = conv.weight.shape[1] * conv.groups
    return torch.randn(images, channels, side, side).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_gives_the_same_sums(case: str, padded: bool) -> None:
    torch.manual_seed(0)
    conv = convolution(case)
    x, at = batch(3, conv), conv.acting(padded)
    wide = conv.to(torch.device("cpu"), torch.float64)
    plain = wide.kernels(x.double(), None, padded)
    other = torch.randn_like(plain.float(), memory_format=torch.channels_last)
    for added in (None, other):
        wanted = wide.kernels(x.double(), None if added is None else added.double(), padded)
        kernels = conv.kernels._candidates(x, at)
        assert len(kernels) > 1
        for kernel in kernels:
            given = None if added is None else added.clone()
            assert (kernel(conv, x, given, at) - wanted).abs().max() < 2e-5, kernel.__name__


@pytest.mark.parametrize(
    ("images", "side", "seen"), [(1, 13, TRIAL), (3, 13, TRIAL), (20, 13, TRIAL), (1, 45, 2)]
)
def test_kernel_is_chosen_on_a_batch_however_many_images_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: int, side: int, seen: int
) -> None:
    """The check of a traced trunk and the clean pass bring one image, a sweep many windows."""
    monkeypatch.setenv("VQATLAS_CACHE", str(tmp_path))
    conv = convolution("3x3")
    x = batch(images, conv, side)
    tried: list[tuple[int, int]] = []

    def watched(conv: Convolution, x: Tensor, other: Tensor | None, at: object) -> Tensor:
        assert other is not None
        tried.append((len(x), len(other)))
        return other

    kernels: list[Kernel] = [watched, watched]
    conv.kernels._trial(kernels, x, x, conv.acting(True))
    assert set(tried) == {(seen, seen)}
    assert seen == TRIAL or seen * side**2 <= POSITIONS
