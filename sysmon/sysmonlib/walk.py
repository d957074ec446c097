# SPDX-License-Identifier: Apache-2.0
"""Lists and trees of a guest's kernel, walked in bounded time whatever the guest has made of them."""

from collections.abc import Iterator

from dre.errors import DreError

from sysmonlib.kernel import Space


class Broken(DreError):
    """A list or tree that does not come to its end as it should: it is being changed, or was made so."""


class Walk:
    """Walks through *space*, all of them together of at most *most* steps."""

    def __init__(self, space: Space, most: int) -> None:
        self._space, self._left, self.u64 = space, most, space.u64

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Broken("it is longer than the guest's memory could hold")

    def list(self, head: int, offset: int = 0) -> Iterator[int]:
        """The members of a list of the kernel (list_head), whose links are *offset* octets from their begin.

        Raises Broken, BadAddress.
        """
        seen, u64 = set(), self.u64
        node = u64(head)
        while node != head:
            if node in seen:
                raise Broken(f"the list at {head:#x} is a loop that leaves its head out")
            seen.add(node)
            self._step()
            yield node - offset
            node = u64(node)

    def tree(self, root: int) -> Iterator[int]:
        """The nodes of a red-black tree (rb_node) below *root*, the first of them. Raises Broken, BadAddress."""
        seen, waiting = set(), [root]
        while waiting:
            node = waiting.pop()
            if node == 0:
                continue
            if node in seen:
                raise Broken(f"a tree comes back to {node:#x}")
            seen.add(node)
            self._step()
            yield node
            waiting += self._space.words(node + 8, 2)  # rb_right, rb_left

    def radix(self, entry: int, slots: int, width: int) -> Iterator[int]:
        """What a radix tree (xarray) holds from *entry* on, with *width* slots *slots* octets within each node.

        Raises Broken, BadAddress.
        """
        seen, waiting = set(), [entry]
        while waiting:
            entry = waiting.pop()
            if entry & 3 != 2:
                if entry:
                    self._step()
                    yield entry
            elif entry > 4096:  # smaller ones are marks, such as of a reserved place
                if entry in seen:
                    raise Broken(f"a tree comes back to {entry:#x}")
                seen.add(entry)
                self._step()
                waiting += self._space.words(entry - 2 + slots, width)
