"""A network as a sequence of blocks, between which it can be divided into stages."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn

from distbelief.errors import ConfigError
from distbelief.models.dropout import SeededDropout

NEEDED = (
    "a network is divided where a single activation passes from one part to the next: write it as "
    "an nn.Sequential, or with a forward() that torch.fx can trace, without branches that depend "
    "on values"
)


CHECKS = ("_assert", "_assert_is_none")
"""Functions of torch whose calls in a graph only check something."""
ASKED_FOR = ("getattr", "dim", "size", "eq", "ne", "ge", "gt", "le", "lt")
"""What is asked for in order to check it, or to say in a message."""


class _Tracer(fx.Tracer):
    """Looks into modules, or at their outside alone where it cannot."""

    def __init__(self, *, deep: bool) -> None:
        super().__init__()
        self._deep = deep

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        if isinstance(m, nn.Sequential):
            return False
        opaque = not self._deep or isinstance(m, SeededDropout) or not any(m.children())
        return opaque or super().is_leaf_module(m, module_qualified_name)


class Blocks:
    """The blocks of a network, in order: each takes what the one before hands on.

    What a block hands on is one activation, and beside it those of the network's outputs that are
    there already (the logits of auxiliary heads), which the blocks behind it pass through. The
    blocks are found in the graph of the network's forward pass, as ``torch.fx`` traces it in the
    mode that the network is in; parameters and modules are the network's own, under their own
    names.

    Attributes:
        model: The network.
        names: The blocks' names, all different: the path of the module that a block consists of,
            or of what its modules have in common.

    Raises:
        ConfigError: the network cannot be divided at all; the text says what it needs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph = _traced(model)
        nodes = list(self._graph.nodes)
        at = {node: position for position, node in enumerate(nodes)}
        last_use = {n: max((at[user] for user in n.users), default=at[n]) for n in nodes}
        endings = _endings(nodes)
        tied = _last_uses(model, nodes)
        self._nodes: list[Sequence[fx.Node]] = []
        self._handed_on: list[tuple[fx.Node, ...]] = []
        begin = 0
        for position, node in enumerate(nodes[:-1]):
            live = [n for n in nodes[: position + 1] if last_use[n] > position]
            trunk = [n for n in live if any(at[u] > position and u not in endings for u in n.users)]
            inputs_alone = all(n.op == "placeholder" for n in nodes[begin : position + 1])
            if len(trunk) != 1 or inputs_alone or node in endings or tied[position] > position:
                continue
            self._nodes.append(nodes[begin : position + 1])
            self._handed_on.append((trunk[0], *(n for n in live if n is not trunk[0])))
            begin = position + 1
        self._nodes.append(nodes[begin:])
        self.names = _distinct([_name_of(block) for block in self._nodes])
        self._owners = self._divide_parameters()

    def __len__(self) -> int:
        return len(self._nodes)

    def index(self, name: str) -> int:
        """The position of a block.

        Raises:
            ConfigError: there is no such block; the text has the nearest name.
        """
        if name in self.names:
            return self.names.index(name)
        # A block that a cut has divided bears its module's name in part.
        within = [i for i, known in enumerate(self.names) if known.startswith(f"{name}.")]
        if within:
            return within[0]
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"they are {', '.join(self.names)}"
        raise ConfigError("boundaries", f"the network has no block {name!r}; {hint}")

    def parameters(self, begin: int, end: int) -> tuple[str, ...]:
        """Names of the parameters of blocks ``begin`` to ``end`` - 1, in the network's order.

        Each parameter of the network belongs to one block; one that the forward pass does not use
        goes with the one before it.
        """
        return tuple(n for n, _ in self.model.named_parameters() if begin <= self._owners[n] < end)

    def stage(self, begin: int, end: int) -> fx.GraphModule:
        """Blocks ``begin`` to ``end`` - 1 as a module that shares the network's own modules.

        It takes the network's input, or what block ``begin`` - 1 hands on, the activation first;
        it returns what its last block hands on, as a tuple, or what the network returns.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        if begin > 0:
            for node in self._handed_on[begin - 1]:
                copies[node] = graph.placeholder(node.name)
        for block in self._nodes[begin:end]:
            for node in block:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        if end < len(self):
            graph.output(tuple(copies[node] for node in self._handed_on[end - 1]))
        module = fx.GraphModule(self.model, graph)
        module.training = self.model.training  # without touching that of the modules within
        return module

    def _divide_parameters(self) -> dict[str, int]:
        used: dict[int, int] = {}
        for index, block in enumerate(self._nodes):
            for node in block:
                for tensor in _tensors_of(self.model, node):
                    used.setdefault(id(tensor), index)
        owners, owner = {}, 0
        for name, parameter in self.model.named_parameters():
            owner = used.get(id(parameter), owner)
            owners[name] = owner
        return owners


def _traced(model: nn.Module) -> fx.Graph:
    first: Exception | None = None
    for deep in (True, False):
        try:
            return _without_checks(_Tracer(deep=deep).trace(model, _other_defaults(model)))
        except Exception as error:  # whatever a stranger's forward() does with what it is not given
            first = first or error
    said = str(first).strip().splitlines()
    raise ConfigError(
        "stages",
        f"{type(model).__name__} cannot be divided ({type(first).__name__}: "
        f"{said[0] if said else ''}); {NEEDED}",
    ) from first


def _without_checks(graph: fx.Graph) -> fx.Graph:
    """Takes away what only checks arguments and shapes, and hands on nothing.

    It would stand as blocks of its own, with which a stage might begin.
    """
    for node in reversed(graph.nodes):  # whoever asks for a value comes behind it
        name = getattr(node.target, "__name__", str(node.target))
        if name in CHECKS or (name in ASKED_FOR and not node.users):
            graph.erase_node(node)
    return graph


def _other_defaults(model: nn.Module) -> dict[str, Any]:
    """All arguments of ``forward`` but the first keep their defaults."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _endings(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The output, and what only puts it together: a named tuple of logits."""
    found = {nodes[-1]}
    for node in reversed(nodes[:-1]):
        builds = node.op == "call_function" and isinstance(node.target, type)
        if builds and node.users and all(user in found for user in node.users):
            found.add(node)
    return found


def _tensors_of(model: nn.Module, node: fx.Node) -> list[Any]:
    """Parameters, buffers and other state that a node uses."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        # Of a dropout layer's calls in one pass the second goes on where the first ended.
        drawn = [m for m in module.modules() if isinstance(m, SeededDropout)]
        return [*module.parameters(), *module.buffers(), *drawn]
    if node.op == "get_attr":
        owner: Any = model
        for part in str(node.target).split("."):
            owner = getattr(owner, part)
        return [owner]
    return []


def _last_uses(model: nn.Module, nodes: Sequence[fx.Node]) -> list[int]:
    """For each node, the last one that uses a parameter that was used up to here."""
    last: dict[int, int] = {}
    for position, node in enumerate(nodes):
        last |= {id(tensor): position for tensor in _tensors_of(model, node)}
    reach, found = -1, []
    for node in nodes:
        reach = max([reach, *(last[id(tensor)] for tensor in _tensors_of(model, node))])
        found.append(reach)
    return found


def _name_of(block: Iterable[fx.Node]) -> str:
    paths = [str(n.target).split(".") for n in block if n.op in ("call_module", "get_attr")]
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    common = [parts[0] for parts in alike]
    if common:
        return ".".join(common)
    named = [n for n in block if n.op not in ("placeholder", "output")]
    return ".".join(paths[0]) if paths else (named[0].name if named else "output")


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        n = sum(known == name or known.startswith(f"{name}#") for known in found)
        found.append(f"{name}#{n + 1}" if n else name)
    return tuple(found)
