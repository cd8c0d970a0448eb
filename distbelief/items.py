"""Items: how a run's examples are cut into the units that are leased, pushed and applied once.

An item is a range of one epoch's permutation; its number counts through the whole run and is the
identity of its push. Everything here is a pure function of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One item: positions ``[begin, end)`` of the permutation of ``epoch``."""

    number: int
    epoch: int
    begin: int
    end: int

    @property
    def n_examples(self) -> int:
        """Examples that the item covers."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPlan:
    """The division of a run into items.

    Attributes:
        n_examples: Examples in one epoch.
        batch_size: Examples in one step.
        n_push: Steps whose gradients are summed into one push.
        n_items: Items of the whole run; the run ends when each is applied or set aside.
    """

    n_examples: int
    batch_size: int
    n_push: int
    n_items: int

    @classmethod
    def of_run(
        cls,
        *,
        n_examples: int,
        batch_size: int,
        n_push: int,
        epochs: float,
        max_examples: int | None,
    ) -> ItemPlan:
        """The plan of ``epochs`` passes, cut at the first item that reaches ``max_examples``.

        Items are never cut short by the limit, so that an item covers the same examples whatever
        the limit is.
        """
        plan = cls(n_examples=n_examples, batch_size=batch_size, n_push=n_push, n_items=0)
        target = round(epochs * n_examples)
        if max_examples is not None:
            target = min(target, max_examples)
        return cls(
            n_examples=n_examples,
            batch_size=batch_size,
            n_push=n_push,
            n_items=plan._items_reaching(target),
        )

    def _items_reaching(self, examples: int) -> int:
        whole, rest = divmod(examples, self.n_examples)
        return whole * self.items_per_epoch + -(-rest // self.examples_per_item)

    @property
    def examples_per_item(self) -> int:
        """Examples of every item but the last of an epoch, which may be shorter."""
        return self.batch_size * self.n_push

    @property
    def items_per_epoch(self) -> int:
        """Items in one epoch."""
        return -(-self.n_examples // self.examples_per_item)

    @property
    def n_epochs(self) -> int:
        """Epochs that the run touches, the last perhaps in part."""
        return -(-self.n_items // self.items_per_epoch)

    @property
    def total_examples(self) -> int:
        """Examples of all items of the run."""
        return self.examples_before(self.n_items)

    def item(self, number: int) -> Item:
        """The item of that number, which may lie beyond the run's end."""
        epoch, position = divmod(number, self.items_per_epoch)
        begin = position * self.examples_per_item
        return Item(number, epoch, begin, min(begin + self.examples_per_item, self.n_examples))

    def examples_before(self, number: int) -> int:
        """Examples of all items below ``number``: the item's position in the run."""
        epoch, position = divmod(number, self.items_per_epoch)
        return epoch * self.n_examples + position * self.examples_per_item

    def items_of_epoch(self, epoch: int) -> range:
        """Numbers of the items of ``epoch`` that belong to the run."""
        first = epoch * self.items_per_epoch
        return range(min(first, self.n_items), min(first + self.items_per_epoch, self.n_items))

    def steps(self, item: Item) -> list[tuple[int, int]]:
        """The item's batches, as ranges of positions; the last may be shorter."""
        return [
            (begin, min(begin + self.batch_size, item.end))
            for begin in range(item.begin, item.end, self.batch_size)
        ]
