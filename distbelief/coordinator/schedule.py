"""The learning rate as a pure function of an item's number.

With x the examples before the item, E those of an epoch and T those of the run:

    fixed        lr
    step         lr * factor ** floor(x / (step_epochs * E))
    polynomial   lr * (1 - x / T) ** power

Szegedy et al. 2014 take ``step`` with 0.96 every 8 epochs. During the first ``warmup_examples`` the
rate is multiplied by (x + examples of the item) / warmup_examples.
"""

from __future__ import annotations

from dataclasses import dataclass

from distbelief.config import ScheduleConfig
from distbelief.items import ItemPlan


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rate of each item of a run: the same for whoever asks, whenever."""

    config: ScheduleConfig
    plan: ItemPlan

    def rate(self, item: int) -> float:
        """The learning rate of an item.

        Example:
            >>> plan = ItemPlan(n_examples=100, batch_size=10, n_push=1, n_items=200)
            >>> rate = Schedule(ScheduleConfig(lr=1.0, schedule="step", step_epochs=8), plan).rate
            >>> rate(0), rate(79), rate(80)
            (1.0, 1.0, 0.96)
        """
        c, x = self.config, self.plan.examples_before(item)
        rate = c.lr
        if c.schedule == "step":
            rate *= c.step_factor ** int(x // (c.step_epochs * self.plan.n_examples))
        elif c.schedule == "polynomial":
            rate *= max(0.0, 1.0 - x / self.plan.total_examples) ** c.power
        if x < c.warmup_examples:
            rate *= min(1.0, (x + self.plan.item(item).n_examples) / c.warmup_examples)
        return rate
