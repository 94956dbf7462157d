"""Who holds which page of the cache, and which pages hold tokens that a later request may begin with.

Pages whose tokens are known form a tree: a page hangs on the page before it, under its own tokens, so that a path from a
root is a prompt's beginning. Pages that nobody holds stay in the tree until their memory is needed, oldest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from qtransformers.cache import PAGE_TOKENS, PagedCache
from qtransformers.errors import InsufficientMemoryError

SHORTEST_SHARE = 16  # tokens of a page that are worth copying it


@dataclass(eq=False, slots=True)
class Page:
    """A page, or the root of a tree. Its tokens are known once they will not change any more."""

    number: int
    holders: int = 0
    tokens: tuple[int, ...] = ()
    parent: Page | None = None
    children: dict[tuple[int, ...], Page] = field(default_factory=dict)  # full ones by their tokens
    beginnings: dict[tuple[int, ...], list[Page]] = field(default_factory=dict)  # all by their first SHORTEST_SHARE


@dataclass(eq=False, slots=True)
class Table:
    """The pages of one sequence, in order. Only sequences of the same `salt` share pages."""

    salt: Hashable = None
    pages: list[Page] = field(default_factory=list)
    n_known: int = 0  # of them, from the first, are in the tree, and no longer written to

    @property
    def numbers(self) -> list[int]:
        """Numbers of the pages, for a `Batch`."""
        return [page.number for page in self.pages]


class PagePool:
    """Shares the pages of a cache among sequences. `partly=False` shares whole pages only, `shares=False` none."""

    def __init__(self, cache: PagedCache, *, shares: bool = True, partly: bool = True) -> None:
        self._cache = cache
        self._shares = shares
        self._partly = partly
        self._roots: dict[Hashable, Page] = {}
        self._idle: OrderedDict[Page, None] = (
            OrderedDict()
        )  # nobody's, in the tree; a page comes after those that hang on it

    @property
    def n_free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._cache.free) + len(self._idle)

    @property
    def n_pages(self) -> int:
        """All pages."""
        return self._cache.n_pages

    def extend(self, table: Table, tokens: Sequence[int]) -> int:
        """Append pages that hold what follows in `tokens` to a table that ends at a page's edge; how many tokens are in it now.

        At least one token is left to compute: its logits are wanted.
        """
        if not self._shares or table.n_known < len(table.pages):
            return len(table.pages) * PAGE_TOKENS
        last = len(tokens) - 1
        node = table.pages[-1] if table.pages else self._roots.get(table.salt)
        if node is None:
            return 0
        while (start := len(table.pages) * PAGE_TOKENS) + PAGE_TOKENS <= last:
            page = node.children.get(tuple(tokens[start : start + PAGE_TOKENS]))
            if page is None:
                break
            self._hold(page)
            table.pages.append(page)
            table.n_known += 1
            node = page
        return start + self._share_part(table, node, tuple(tokens[start : min(last, start + PAGE_TOKENS)]))

    def reserve(self, table: Table, n_tokens: int) -> None:
        """Pages for `n_tokens` tokens; InsufficientMemoryError where too few are free, and then nothing changes."""
        missing = -(-n_tokens // PAGE_TOKENS) - len(table.pages)
        if missing > 0:
            table.pages += self._take(missing)

    def learn(self, table: Table, tokens: Sequence[int], past: int) -> None:
        """Let others find the pages that are full: the first `past` of `tokens` are in the cache for good."""
        while self._shares and (table.n_known + 1) * PAGE_TOKENS <= past:
            i = table.n_known
            key = tuple(tokens[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
            node, page = self._parent(table), table.pages[i]
            twin = node.children.get(key)
            if twin is None:
                self._hang(page, node, key)
            else:  # another sequence has computed the same meanwhile
                self._hold(twin)
                table.pages[i] = twin
                self._let_go(page)
            table.n_known += 1

    def rewind(self, table: Table, past: int) -> int:
        """Go on after the first `past` tokens, writing to pages of one's own; how many are still in the table."""
        n = past // PAGE_TOKENS
        if n >= table.n_known:
            return past
        known = table.pages[n]
        for page in reversed(table.pages[n:]):
            self._let_go(page)
        del table.pages[n:]
        table.n_known = n
        if past % PAGE_TOKENS == 0 or not self.n_free:
            return n * PAGE_TOKENS
        (own,) = self._take(1)  # perhaps the same page, if nobody else held it
        self._cache.copy(known.number, own.number)
        table.pages.append(own)
        return past

    def release(self, table: Table, tokens: Sequence[int] = (), past: int = 0) -> None:
        """Let all pages go. Of the first `past` of `tokens` others may still make use."""
        self.learn(table, tokens, past)
        rest = tuple(tokens[table.n_known * PAGE_TOKENS : past])
        if self._shares and self._partly and len(rest) >= SHORTEST_SHARE:
            node = self._parent(table)
            if not any(page.tokens[: len(rest)] == rest for page in node.beginnings.get(rest[:SHORTEST_SHARE], ())):
                self._hang(table.pages[table.n_known], node, rest)
        for page in reversed(table.pages):
            self._let_go(page)
        table.pages.clear()
        table.n_known = 0

    def forget(self) -> None:
        """Free every page that nobody holds."""
        while self._idle:
            self._cache.give_back([self._evict()])

    def _parent(self, table: Table) -> Page:
        """What the next page of a table that becomes known hangs on."""
        return table.pages[table.n_known - 1] if table.n_known else self._roots.setdefault(table.salt, Page(-1))

    def _share_part(self, table: Table, node: Page, rest: tuple[int, ...]) -> int:
        """Begin a page of one's own with a copy of the one that has most tokens of `rest`, in order; how many it has."""
        if not self._partly or len(rest) < SHORTEST_SHARE:
            return 0
        found, n = None, SHORTEST_SHARE - 1
        for page in node.beginnings.get(rest[:SHORTEST_SHARE], ()):
            common = _common(page.tokens, rest)
            if common > n:
                found, n = page, common
        if found is None:
            return 0
        self._hold(found)
        try:
            (own,) = self._take(1)
        except InsufficientMemoryError:
            return 0
        finally:
            self._let_go(found)
        self._cache.copy(found.number, own.number)
        table.pages.append(own)
        return n

    def _take(self, n: int) -> list[Page]:
        if n > self.n_free:
            raise InsufficientMemoryError(
                f"the cache has {self.n_free} free pages of {PAGE_TOKENS} tokens, {n} are needed. Raise cache_tokens, or end other requests."
            )
        while len(self._cache.free) < n:
            self._cache.give_back([self._evict()])
        return [Page(number, 1) for number in self._cache.take(n)]

    def _hold(self, page: Page) -> None:
        page.holders += 1
        self._idle.pop(page, None)

    def _let_go(self, page: Page) -> None:
        page.holders -= 1
        if page.holders:
            return
        if page.parent is not None:
            self._idle[page] = None
        else:
            self._cache.give_back([page.number])

    def _hang(self, page: Page, node: Page, tokens: tuple[int, ...]) -> None:
        """Let a page be found under `tokens`, instead of those that hold only a beginning of them."""
        shorter = [
            other
            for other in node.beginnings.get(tokens[:SHORTEST_SHARE], ())
            if tokens[: len(other.tokens)] == other.tokens
        ]
        page.parent, page.tokens = node, tokens
        if len(tokens) == PAGE_TOKENS:
            node.children[tokens] = page
        node.beginnings.setdefault(tokens[:SHORTEST_SHARE], []).append(page)
        for other in shorter:
            if not other.holders:
                del self._idle[other]
                self._unhang(other)
                self._cache.give_back([other.number])

    def _evict(self) -> int:
        """Take the page out of the tree that was let go first; its number."""
        page, _ = self._idle.popitem(last=False)
        self._unhang(page)
        return page.number

    def _unhang(self, page: Page) -> None:
        node, first = page.parent, page.tokens[:SHORTEST_SHARE]
        assert node is not None
        if node.children.get(page.tokens) is page:
            del node.children[page.tokens]
        node.beginnings[first].remove(page)
        if not node.beginnings[first]:
            del node.beginnings[first]
        if node.number < 0 and not node.beginnings:
            self._roots = {salt: root for salt, root in self._roots.items() if root is not node}
        page.parent = None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first items are the same in both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
