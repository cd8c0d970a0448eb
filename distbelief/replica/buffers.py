"""A model whose parameters and gradients are views into flat vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from distbelief.layout import Layout


class FlatModel:
    """Binds a model to flat vectors of its layout; one thread at a time.

    On the CPU there are two parameter vectors, of which the model sees one while the other is
    fetched into, and two gradient vectors, of which the model fills one while the other is pushed:
    they change places without a copy. On another device the model's two vectors stay there, and
    the host's are copied to and fro.

    Attributes:
        model: The bound model; its values until the first :meth:`swap_in` are those it came with.
        parameters: ``(size,) float32`` on the device: what the model computes with.
        gradient: ``(size,) float32`` on the device: where backward passes add up.
        incoming: ``(size,) float32`` on the CPU, to be fetched into.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        device: torch.device,
        owned: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Binds ``owned``, by default all parameters of ``model``, as the layout has them."""
        self.model = model.to(device)
        self._device = device
        self._layout = layout
        self._on_host = device.type == "cpu"
        pinned = device.type == "cuda"
        size = layout.size
        named = dict(model.named_parameters()) if owned is None else owned
        self._bound = [named[p.name] for p in layout.parameters]
        self.parameters = torch.empty(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        self.incoming = torch.empty(size, pin_memory=pinned)
        self._outgoing = torch.empty(size, pin_memory=pinned)
        with torch.no_grad():
            for name, view in layout.views(self.parameters).items():
                view.copy_(named[name])
        self._views = {
            id(vector): tuple(layout.views(vector).values())
            for vector in (self.parameters, self.gradient, self.incoming, self._outgoing)
            if vector.device == self.parameters.device
        }
        self._bind_parameters()
        self._bind_gradient()

    def swap_in(self) -> None:
        """Makes the values in ``incoming`` the model's parameters; it is then free again."""
        if self._on_host:
            self.parameters, self.incoming = self.incoming, self.parameters
            self._bind_parameters()
        else:
            self.parameters.copy_(self.incoming)

    def take_gradient(self) -> torch.Tensor:
        """The gradient on the CPU, for a push; a zeroed one takes its place.

        The vector that is returned must be out of use before this is called again.
        """
        if self._on_host:
            taken, self.gradient = self.gradient, self._outgoing
            self._outgoing = taken
            self._bind_gradient()
        else:
            taken = self._outgoing.copy_(self.gradient)
        self.gradient.zero_()
        return taken

    def _bind_parameters(self) -> None:
        for parameter, view in zip(self._bound, self._views[id(self.parameters)], strict=True):
            parameter.data = view

    def _bind_gradient(self) -> None:
        for parameter, view in zip(self._bound, self._views[id(self.gradient)], strict=True):
            parameter.grad = view
