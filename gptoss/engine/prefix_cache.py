"""Prefixes that were computed before: pages of finished sequences, found by their tokens.

The cache is a tree. A node is a block of `page_size` tokens that follow those of its parent, so a
path from the root is a prefix, compared token by token; it holds the pages of the full and of the
sliding layers that were computed for this block. The pages stay in the pool, which may
take them back when nobody holds them; the node then forgets them.

A sequence can begin at position p if the full pages of all blocks before p are there, and the
sliding pages of those blocks that the token at p still sees: a window that has lost a page cannot
be computed again without the layers below it, so then the prefix is cut until it fits.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from gptoss.engine.pages import FULL, NO_PAGE, SLIDING, PagePool, SequencePages, first_block_seen

Key = tuple[int | str, ...]  # tokens, behind the salt in a first block


class Node:
    """A block of tokens that follow those of its parent. pages: FULL and SLIDING, or NO_PAGE."""

    __slots__ = ("children", "key", "pages", "parent")

    def __init__(self, parent: Node | None, key: Key) -> None:
        self.parent = parent
        self.key = key
        self.pages = [NO_PAGE, NO_PAGE]
        self.children: dict[Key, Node] = {}


class PrefixCache:
    """Knows which pages of a pool hold which prefixes.

    Args:
        window: width of the sliding attention window, in tokens, the query's own included.
    """

    def __init__(self, pool: PagePool, page_size: int, window: int) -> None:
        self._pool = pool
        self._page_size = page_size
        self._window = window
        self.root = Node(None, ())

    def find(self, tokens: SequenceOf[int], salt: str = "") -> list[Node]:
        """The longest prefix of `tokens` that a sequence can continue, one node per block.

        salt: the one that they were remembered with; others have a tree of their own. At least one
        token is left to compute: its logits are wanted.
        """
        path: list[Node] = []
        node = self.root
        for block in range((len(tokens) - 1) // self._page_size):
            child = node.children.get(self._key(tokens, block, salt))
            if child is None or child.pages[FULL] == NO_PAGE:
                break
            path.append(child)
            node = child
        # A gap in the sliding pages ends what can be used, unless the window is past it.
        together = best = 0
        for block, node in enumerate(path):
            together = together + 1 if node.pages[SLIDING] != NO_PAGE else 0
            if together >= block + 1 - self._first_needed(block + 1):
                best = block + 1
        return path[:best]

    def adopt(self, pages: SequencePages, path: SequenceOf[Node]) -> None:
        """Give a sequence that holds nothing the pages of a prefix."""
        first = self._first_needed(len(path))
        pages.adopt(
            [node.pages[FULL] for node in path], [node.pages[SLIDING] for node in path[first:]]
        )
        pages.node = path[-1] if path else self.root
        pages.cached = len(path)

    def extend(
        self, pages: SequencePages, tokens: SequenceOf[int], computed: int, salt: str = ""
    ) -> None:
        """Remember the blocks that a sequence has completed, before it trims them.

        Where another one was first, its pages take the place of the sequence's own, so that every
        sequence holds the pages of all nodes on its path, and none is forgotten before its end.
        """
        node = self.root if pages.node is None else pages.node
        for block in range(pages.cached, computed // self._page_size):
            key = self._key(tokens, block, salt)
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key)
            for row in (FULL, SLIDING):
                mine = int(pages.table[row, block])
                if mine == NO_PAGE:
                    continue
                if child.pages[row] == NO_PAGE:
                    child.pages[row] = mine
                    self._pool.value(mine, _Forget(child, row))
                elif child.pages[row] != mine:
                    pages.replace(row, block, child.pages[row])
            node = child
            pages.cached = block + 1
        pages.node = node

    def _first_needed(self, blocks: int) -> int:
        """The first of n blocks whose sliding page is still seen by the token after them."""
        return first_block_seen(blocks * self._page_size, self._window, self._page_size)

    def _key(self, tokens: SequenceOf[int], block: int, salt: str) -> Key:
        key: Key = tuple(tokens[block * self._page_size : (block + 1) * self._page_size])
        return (salt, *key) if salt and block == 0 else key


class _Forget:
    """Told by the pool that a page is taken: its node has it no more, and may be of no use now."""

    __slots__ = ("_node", "_row")

    def __init__(self, node: Node, row: int) -> None:
        self._node = node
        self._row = row

    def __call__(self, page: int) -> None:
        node: Node = self._node
        node.pages[self._row] = NO_PAGE
        while (
            node.parent is not None
            and not node.children
            and node.pages[FULL] == node.pages[SLIDING] == NO_PAGE
        ):
            del node.parent.children[node.key]
            node = node.parent
