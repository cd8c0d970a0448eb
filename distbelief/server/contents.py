"""What a shard holds: the vectors of its range, and the account of what has gone into them."""

from __future__ import annotations

import torch

from distbelief.errors import ShardRefusedError
from distbelief.server.account import Account
from distbelief.server.averaging import PolyakAverage
from distbelief.server.restore import Restore, restore
from distbelief.server.rules import make_rule
from distbelief.server.spec import ShardSpec
from distbelief.server.statefile import image, views
from distbelief.types import Push, Refusal, Version, Weights


class Contents:
    """A shard's parameters, its update rule's state, their average, and its account.

    For the shard's writer alone; other threads may read :attr:`loaded` and :attr:`version`.

    Attributes:
        account: What has been applied.
        loaded: Whether there are values; once there are, there always will be.
        nbytes_received: Of the gradients that were applied.
        nbytes_sent: Of the parameters that were handed out.
    """

    def __init__(self, spec: ShardSpec) -> None:
        self._spec = spec
        self._parameters = torch.zeros(spec.size)
        self._rule = make_rule(spec.optimizer, spec.size, spec.segments)
        self._average = PolyakAverage(
            spec.averaging,
            spec.size,
            examples_per_item=spec.examples_per_item,
            total_examples=spec.total_examples,
        )
        self.account = Account()
        self.loaded = False
        self.nbytes_received = 0
        self.nbytes_sent = 0

    @property
    def version(self) -> Version:
        """The present version; for another thread it may be another a moment later."""
        return Version(self._spec.incarnation, self.account.clock)

    def require_loaded(self) -> None:
        """Raises ShardRefusedError until there are values."""
        if not self.loaded:
            raise ShardRefusedError(
                self._spec.index, Refusal.NOT_LOADED, "it has no initial values yet"
            )

    def load(self, values: torch.Tensor) -> None:
        """See :class:`~distbelief.services.ShardService`."""
        if values.numel() != self._spec.size:
            raise ShardRefusedError(
                self._spec.index,
                Refusal.SIZE,
                f"{values.numel()} values for {self._spec.size} parameters",
            )
        if self.account.clock:
            raise ShardRefusedError(
                self._spec.index, "too_late", f"it has applied {self.account.clock} pushes already"
            )
        self._parameters.copy_(values)
        self.loaded = True

    def restore(self, wanted: Restore) -> None:
        """Takes over a state from a snapshot; raises DataError if a file is damaged."""
        spec = self._spec
        found = restore(spec.storage, wanted, spec.begin, spec.end)
        self._parameters.copy_(found.tensors["parameters"])
        for name, slot in self._rule.slots.items():
            slot.copy_(found.tensors[name])
        self._average.restore(found.average, found.tensors.get("average"))
        self.account = found.account
        self.loaded = True

    def adopt(self, state: bytes | bytearray, clock: int) -> None:
        """Takes over what :meth:`image` of a shard of the same range returned at that clock.

        Raises:
            ShardRefusedError: it is no such thing; nothing has changed.
        """
        spec = self._spec
        vectors = {"parameters": self._parameters, **self._rule.slots}
        try:
            found = views(state if isinstance(state, bytearray) else bytearray(state))
            account = Account.from_dict(found.about["account"])
            counts = {name: int(n) for name, n in found.about["average"].items()}
            average = found.tensors.pop("average", None)
            given = {name: tensor.numel() for name, tensor in found.tensors.items()}
            wanted = dict.fromkeys(vectors, spec.size)
            if given != wanted or (average is not None and average.numel() != spec.size):
                raise ValueError(f"it has {given}, not {wanted}")
            if counts.keys() != self._average.to_dict().keys():
                raise ValueError(f"its average has {sorted(counts)}")
            if not account.clock == len(account.applied) == clock:
                raise ValueError(f"its clock is {account.clock}, not {clock}")
        # JSON of another process may be anything at all.
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"no state of its range: {error}"
            raise ShardRefusedError(spec.index, "malformed", detail) from error
        for name, vector in vectors.items():
            vector.copy_(found.tensors[name])
        self._average.restore(counts, average)
        self.account = account
        self.loaded = True

    def fetch(
        self, out: torch.Tensor, begin: int, weights: Weights, unless: Version | None = None
    ) -> Version:
        """See :class:`~distbelief.services.ParameterService`."""
        self.require_loaded()
        spec = self._spec
        end = begin + out.numel()
        if begin < spec.begin or end > spec.end:
            raise ShardRefusedError(
                spec.index,
                Refusal.SIZE,
                f"[{begin}, {end}) of a shard that has [{spec.begin}, {spec.end})",
            )
        if unless != self.version:
            averaged = weights is Weights.AVERAGED
            source = self._average.read(self._parameters) if averaged else self._parameters
            first = begin - spec.begin
            out.copy_(source[first : end - spec.begin])
            if weights is Weights.PREDICTED:
                account = self.account
                self._rule.predict(out, first, account.rate, account.expected_staleness)
            self.nbytes_sent += 4 * out.numel()
        return self.version

    def fetch_for_push(self, out: torch.Tensor | None, begin: int) -> Version | None:
        """What a push's answer brings along: the values that the run's replicas compute with."""
        if out is None:
            return None
        predicted = self._spec.optimizer.predict_weights
        return self.fetch(out, begin, Weights.PREDICTED if predicted else Weights.LATEST)

    def apply(self, push: Push) -> None:
        """Updates the parameters by a push of the whole range; overwrites its gradient.

        The account and, after it, the average are to take note of it.
        """
        self._rule.apply(self._parameters, push.gradient, push.rate)
        self.nbytes_received += 4 * push.gradient.numel()

    def average(self) -> None:
        """The average takes note of the push that the account was given last."""
        self._average.update(self._parameters, self.account.examples)

    def image(self) -> bytearray:
        """A copy of it all, as the bytes of a snapshot's file."""
        tensors = {"parameters": self._parameters, **self._rule.slots}
        if self._average.started:
            tensors["average"] = self._average.read(self._parameters)
        about = {"account": self.account.to_dict(), "average": self._average.to_dict()}
        return image(tensors, about)
