"""The ReLU rules act on operations, in one thread, and leave the model as it was."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import nets
from workers.methods.backward import pixel_gradients
from workers.methods.gradients import GradCam, GuidedBackprop, Saliency
from workers.methods.relu_rules import BACKWARD, record

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "threshold module": nn.Threshold(0, 0),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu keyword": lambda x: F.relu(input=x),
    "F.relu_": F.relu_,
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "F.threshold in place": lambda x: F.threshold(x, 0, 0, inplace=True),
    "F.threshold_": lambda x: F.threshold_(x, 0, 0),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "torch.clamp positional": lambda x: torch.clamp(x, 0),
    "torch.clamp_": lambda x: torch.clamp_(x, min=0),
    "torch.clip": lambda x: torch.clip(x, 0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "Tensor.clamp": lambda x: x.clamp(min=0),
    "Tensor.clamp_": lambda x: x.clamp_(0),
    "Tensor.clip": lambda x: x.clip(min=0.0),
    "Tensor.clip_": lambda x: x.clip_(min=0.0),
    "Tensor.clamp_min": lambda x: x.clamp_min(0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
}
CLIPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU6(),
    "module in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp_": lambda x: x.clamp_(min=0, max=6),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "hardtanh": F.hardtanh,
    "clamp at -1": lambda x: x.clamp(min=-1),
    "clamp from above": lambda x: x.clamp(max=0),
    "threshold at 1": lambda x: F.threshold(x, 1, 0),
    "max-pool": lambda x: F.max_pool1d(x[None], 2)[0],
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(0),
}
X = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 7.0, 8.0, -3.0], dtype=torch.float64)
G = torch.tensor([3.0, -4.0, 5.0, -6.0, 7.0, 8.0, -9.0, -1.0], dtype=torch.float64)
OPEN, POSITIVE = X > 0, G > 0
WANTED = {"saliency": OPEN * G, "guided": OPEN * POSITIVE * G, "deconvnet": POSITIVE * G}


def differentiated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of a copy of the input that is not a leaf, so that in-place calls are allowed."""
    return lambda x: function(x * 1)


@pytest.mark.parametrize("rule", WANTED)
@pytest.mark.parametrize("function", SPELLINGS.values(), ids=SPELLINGS)
def test_relu_however_called_follows_the_rule(
    function: Callable[[Tensor], Tensor], rule: str
) -> None:
    trace = record(differentiated(function), X)
    assert trace.output.tolist() == X.clamp(min=0).tolist()
    assert trace.pull_back(G, rule)[0].tolist() == WANTED[rule].tolist()


@pytest.mark.parametrize("rule", WANTED)
@pytest.mark.parametrize("function", CLIPPED.values(), ids=CLIPPED)
def test_clipped_relu_passes_nothing_above_its_ceiling(
    function: Callable[[Tensor], Tensor], rule: str
) -> None:
    trace = record(differentiated(function), X)
    assert trace.output.tolist() == X.clamp(0, 6).tolist()
    assert trace.pull_back(G, rule)[0].tolist() == ((X <= 6) * WANTED[rule]).tolist()


@pytest.mark.parametrize("rule", WANTED)
@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_other_operations_keep_their_derivative(
    function: Callable[[Tensor], Tensor], rule: str
) -> None:
    trace = record(function, X)
    leaf = X.clone().requires_grad_()
    output = function(leaf)
    gradient = G[: len(output)]
    (wanted,) = torch.autograd.grad(output, leaf, gradient)
    assert trace.pull_back(gradient, rule)[0].tolist() == wanted.tolist()


@pytest.mark.parametrize("rule", BACKWARD)
def test_many_gradients_equal_one_by_one(rule: str) -> None:
    scene = nets.scene(nets.build("resnet"))
    features = torch.randn(5, *scene.features.shape, dtype=torch.float64)
    many = scene.trunk_trace.pull_back_many(features, rule)[0]
    one_by_one = [scene.trunk_trace.pull_back(each, rule)[0] for each in features]
    torch.testing.assert_close(many, torch.stack(one_by_one), rtol=1e-12, atol=1e-15)


def test_channels_last_gradients_equal_contiguous_ones() -> None:
    """PyTorch's batch normalisation misreads some of them; ours are made contiguous first."""
    trace = record(nets.build("plain").trunk, nets.canvas()[None])
    gradients = torch.randn(4, *trace.output.shape[1:], dtype=torch.float64)
    views = gradients.contiguous(memory_format=torch.channels_last)[:, None]
    for rule in BACKWARD:
        wanted = trace.pull_back_many(gradients[:, None], rule)[0]
        torch.testing.assert_close(trace.pull_back_many(views, rule)[0], wanted)
        torch.testing.assert_close(trace.pull_back(views[1], rule)[0], wanted[1])


def test_overwritten_activation_still_gives_the_gradient() -> None:
    def forward(x: Tensor) -> Tensor:
        y = (2 * x).relu()
        y -= 5
        return y

    trace = record(forward, X)
    assert trace.pull_back(G, "saliency")[0].tolist() == (2 * OPEN * G).tolist()


def test_in_place_write_is_seen_through_a_view() -> None:
    def forward(x: Tensor) -> Tensor:
        y = 3 * x
        y[:4].relu_()
        return y

    trace = record(forward, X)
    assert trace.output.tolist() == torch.cat([3 * X[:4].clamp(min=0), 3 * X[4:]]).tolist()
    wanted = torch.cat([3 * (POSITIVE * G)[:4], 3 * G[4:]])
    assert trace.pull_back(G, "deconvnet")[0].tolist() == wanted.tolist()


def test_integers_and_undifferentiated_tensors_are_left_alone() -> None:
    def forward(x: Tensor) -> Tensor:
        lengths = torch.tensor([-1, 2]).clamp(min=0)
        return x * F.relu(torch.ones(1)) * lengths[1]

    assert record(forward, X).pull_back(G, "guided")[0].tolist() == (2 * G).tolist()


def test_inputs_are_not_overwritten() -> None:
    x = X.clone()
    record(lambda x: x.relu_(), x)
    assert x.tolist() == X.tolist()


def test_frozen_and_trainable_weights_give_the_same_gradients() -> None:
    frozen, trainable = (nets.scene(nets.build("resnet", "pooled")) for _ in range(2))
    trainable.model.requires_grad_(True)
    a, b = (pixel_gradients(scene, "logit", "guided") for scene in (frozen, trainable))
    assert torch.equal(a, b)
    assert all(p.grad is None for p in trainable.model.parameters())


def fingerprint(model: nn.Module) -> list[object]:
    """Weights' bytes, and every hook and attribute that a module has."""
    weights = [(n, t.numpy().tobytes()) for n, t in model.state_dict().items()]
    hooks = [
        (name, attribute, len(getattr(module, attribute)))
        for name, module in model.named_modules()
        for attribute in vars(module)
        if "hooks" in attribute
    ]
    methods = [(name, vars(module).get("forward")) for name, module in model.named_modules()]
    return [weights, hooks, methods, [type(m) for m in model.modules()], model.training]


def test_explaining_leaves_the_model_untouched() -> None:
    model = nets.build("resnet")
    before = fingerprint(model)
    GuidedBackprop().explain(nets.scene(model))
    assert fingerprint(model) == before


class Exploding(nn.Module):
    """Raises half-way through the forward pass while armed."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            raise FloatingPointError("half-way")
        return x


def test_exception_in_forward_leaves_nothing_behind() -> None:
    model = nets.build("plain")
    model.trunk_net.insert(3, Exploding())
    wanted = pixel_gradients(nets.scene(model), "logit", "guided")
    before, scene = fingerprint(model), nets.scene(model)
    model.trunk_net[3].armed = True
    with pytest.raises(FloatingPointError, match="half-way"):
        GuidedBackprop().explain(scene)
    model.trunk_net[3].armed = False
    assert fingerprint(model) == before
    assert F.relu(X.clone().requires_grad_()).grad_fn.name() == "ReluBackward0"
    assert torch.equal(pixel_gradients(scene, "logit", "guided"), wanted)


def test_two_threads_on_one_model_do_not_disturb_each_other() -> None:
    model = nets.build("resnet")
    methods = (Saliency(), GuidedBackprop(), GradCam())
    wanted = [method.explain(nets.scene(model)).arrays["map"] for method in methods]
    start = threading.Barrier(len(methods))
    wrong: list[int] = []

    def work(i: int) -> None:
        start.wait()
        for _ in range(10):
            got = methods[i].explain(nets.scene(model)).arrays["map"]
            wrong.extend([i] * bool((got != wanted[i]).any()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(methods))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
