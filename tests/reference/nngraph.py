"""The order in which nngraph holds a graph's modules, and so their parameters.

``gModule`` turns the graph round twice and sorts it: nodes are added to a graph edge by edge,
breadth first from the output; ``topsort`` goes depth first from the output of the graph turned
round again, each node after all that it needs. Written from torch/graph and torch/nngraph.
"""

from collections.abc import Sequence
from itertools import pairwise

Edge = tuple[str, str]


class Net:
    """Modules by name, each with what it reads, in that order."""

    def __init__(self, *inputs: str) -> None:
        self.reads: dict[str, list[str]] = {name: [] for name in inputs}

    def add(self, name: str, *reads: str) -> str:
        """The name, so that a module can be named where it is used."""
        assert name not in self.reads
        self.reads[name] = [*reads]
        return name

    def chain(self, *names: str) -> str:
        """Modules one after the other, the first of which is there already."""
        for before, name in pairwise(names):
            self.add(name, before)
        return names[-1]

    def order(self, *outputs: str) -> list[str]:
        """The container's modules."""
        edges: list[Edge] = []
        queue, reads = ["(out)"], {**self.reads, "(out)": [*outputs], "(in)": []}
        for name, read in self.reads.items():
            reads[name] = read or ["(in)"]
        for node in queue:
            edges += [(node, child) for child in reads[node]]
            queue += [child for child in dict.fromkeys(reads[node]) if child not in queue]
        forward = turned(edges)
        found: list[str] = []
        visit("(out)", children(turned(forward)), found)
        return [name for name in found if name in self.reads]


def turned(edges: Sequence[Edge]) -> list[Edge]:
    return [(to, of) for of, to in edges]


def children(edges: Sequence[Edge]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for of, to in edges:
        found.setdefault(of, []).append(to)
    return found


def visit(node: str, below: dict[str, list[str]], found: list[str]) -> None:
    if node not in found:
        for child in below.get(node, ()):
            visit(child, below, found)
        found.append(node)


def stacked_attention(stacks: int) -> list[str]:
    """``san.lua``'s modules for so many attention layers."""
    net = Net("pool5", "lstm")
    image = net.chain("pool5", "view", "image", "view2", "tanh", "dropout")
    u = "lstm"
    for k in range(stacks):
        seen = net.chain(image, f"flat{k}", f"stacks.{k}.image", f"cells{k}")
        asked = net.chain(u, f"stacks.{k}.question", f"repeated{k}")
        joint = net.add(f"sum{k}", seen, asked)
        p = net.chain(
            *(joint, f"tanh{k}", f"dropout{k}", f"units{k}", f"stacks.{k}.score"),
            *(f"scores{k}", f"softmax{k}", f"row{k}"),
        )
        u = net.add(f"u{k}", net.chain(net.add(f"product{k}", p, image), f"vector{k}"), u)
    return net.order(net.chain(u, "last dropout", "answer", "log softmax"))


def conventional_lstm(layers: int) -> list[str]:
    """``LSTM.lua``'s modules for so many layers."""
    net, x, outputs = Net("old", "input"), "input", []
    for k in range(layers):
        net.add(f"old c{k}", "old")
        net.add(f"old h{k}", "old")
    for k in range(layers):
        x = net.add(f"dropout{k}", x) if k else x
        sums = net.add(f"sums{k}", net.add(f"ih{k}", x), net.add(f"hh{k}", f"old h{k}"))
        gates = net.chain(sums, f"gates{k}", f"sigmoid{k}")
        i, f, o = (net.add(f"{gate}{k}", gates) for gate in "ifo")
        candidate = net.chain(sums, f"part{k}", f"tanh{k}")
        kept = net.add(f"kept{k}", f, f"old c{k}")
        c = net.add(f"c{k}", kept, net.add(f"entered{k}", i, candidate))
        x = net.add(f"h{k}", o, net.add(f"tanh c{k}", c))
        outputs += [c, x]
    return net.order(net.add("new", *outputs), net.chain(x, "top dropout", "unused"))


def product(question: str = "question_in", image: str = "image_in") -> list[str]:
    """``netdef.lua``'s ``AxB``."""
    net = Net("q", "i")
    asked = net.chain("q", "q dropout", question, "q tanh")
    return net.order(net.add("product", asked, net.chain("i", "i dropout", image, "i tanh")))
