"""Keys and values of earlier texts by their tokens, so that a prompt computes only what is new in it.

A radix tree: each node has the tokens and the columns of one stretch of text, its children the stretches that have
followed it. Keys and values of a token depend on the tokens before it only, so that the columns of a common beginning
are those that the prompt would compute. The tree holds copies: no row of a batch shares memory with it.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

LEAST = 32  # columns; fewer are computed in the time of their copy
NODES = 4096  # a bound of the search for the least recently used one


class Node:
    """A stretch of text: its tokens, and the columns of all layers in one tensor for each shape."""

    __slots__ = ("children", "columns", "parent", "tokens", "used")

    def __init__(self, parent: "Node | None", tokens: Sequence[int], columns: list[Tensor], used: int) -> None:
        self.parent = parent
        self.tokens = list(tokens)
        self.columns = columns  # each [storages, heads, tokens, size]
        self.children: dict[int, Node] = {}  # by their first token
        self.used = used  # the clock at the last use

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in self.columns)


class PrefixCache:
    """The texts of one model, at most `limit` bytes of them; the least recently used end of a text is dropped first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._roots: dict[str, Node] = {}  # by the space of their texts
        self._nodes: set[Node] = set()  # without the roots
        self._clock = 0
        self._groups: list[list[int]] = []  # for each tensor of a node, the numbers of its storages

    def longest(self, tokens: Sequence[int], space: str = "") -> int:
        """The number of first tokens whose columns are held. Texts of one space are found in it only."""
        return sum(count for _, count in self._path(tokens, space))

    def columns(self, tokens: Sequence[int], space: str = "") -> Iterator[tuple[int, list[Tensor]]]:
        """The columns of all these tokens, in parts: the first column, and for each storage [heads, columns, size]."""
        self._clock += 1
        start = 0
        for node, count in self._path(tokens, space):
            node.used = self._clock
            yield start, self._apart([each[:, :, :count] for each in node.columns])
            start += count

    def keep(self, tokens: Sequence[int], read: Callable[[int, int], Sequence[Tensor]], space: str = "") -> None:
        """Hold the columns of a text.

        `read`: from the first and the last column (exclusive) to the columns of each storage, [heads, columns, size].
        """
        if not self.limit or len(tokens) < LEAST:
            return
        self._clock += 1
        size = sum(each.nbytes for each in read(0, 1))  # of a column
        tokens = tokens[: self.limit // size]
        path = self._path(tokens, space)
        start = sum(count for _, count in path)
        if len(tokens) - start < LEAST:
            for node, _ in path:
                node.used = self._clock
            return
        parent: Node | None = None
        for node, count in path:
            parent = node if count == len(node.tokens) else self._split(node, count)
            parent.used = self._clock
        if not self._make_room((len(tokens) - start) * size):
            return
        if parent is None:
            parent = self._roots.setdefault(space, Node(None, (), [], 0))
        fresh = Node(parent, tokens[start:], self._together(read(start, len(tokens))), self._clock)
        parent.children[fresh.tokens[0]] = fresh
        self._nodes.add(fresh)
        self.bytes += fresh.bytes

    def free(self) -> None:
        """Drop all texts."""
        self._roots.clear()
        self._nodes.clear()
        self.bytes = 0

    def _path(self, tokens: Sequence[int], space: str) -> list[tuple[Node, int]]:
        """The nodes along a text, each with the number of its tokens that the text has."""
        path: list[tuple[Node, int]] = []
        node, at = self._roots.get(space), 0
        while node is not None and at < len(tokens):
            node = node.children.get(tokens[at])
            if node is not None:
                count = common(node.tokens, tokens[at : at + len(node.tokens)])
                path.append((node, count))
                at += count
                if count < len(node.tokens):
                    break
        return path

    def _split(self, node: Node, count: int) -> Node:
        """Let another text follow the first `count` tokens of a node; returns the node of these."""
        assert node.parent is not None
        # Copies: a view would keep the memory of the other part after that is dropped.
        head = Node(node.parent, node.tokens[:count], [each[:, :, :count].clone() for each in node.columns], node.used)
        node.columns = [each[:, :, count:].clone() for each in node.columns]
        node.tokens = node.tokens[count:]
        node.parent.children[head.tokens[0]] = head
        node.parent = head
        head.children[node.tokens[0]] = node
        self._nodes.add(head)
        return head

    def _make_room(self, need: int) -> bool:
        """Drop the least recently used leaves that are not of the newest text; whether `need` bytes fit then."""
        while self.bytes + need > self.limit or len(self._nodes) > NODES - 2:
            leaves = [each for each in self._nodes if not each.children and each.used < self._clock]
            if not leaves:
                return False
            self._drop(min(leaves, key=lambda each: each.used))
        return True

    def _drop(self, leaf: Node) -> None:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens[0]]
        self._nodes.remove(leaf)
        self.bytes -= leaf.bytes
        for space, root in list(self._roots.items()):
            if root is leaf.parent and not root.children:
                del self._roots[space]

    def _together(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """One tensor for all storages of a shape: large blocks of memory return to the system when they are freed."""
        shapes = [(each.shape, each.dtype) for each in columns]
        self._groups = [[i for i, each in enumerate(shapes) if each == kind] for kind in dict.fromkeys(shapes)]
        return [torch.stack([columns[i] for i in group]) for group in self._groups]

    def _apart(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        storages = {
            i: each for group, tensor in zip(self._groups, tensors, strict=True) for i, each in zip(group, tensor)
        }
        return [storages[i] for i in range(len(storages))]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of first tokens that both texts have."""
    if one == other:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
