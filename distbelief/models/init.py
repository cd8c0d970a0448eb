"""Initial values, drawn from an explicit generator so that every process can draw the same."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn

from distbelief.errors import ConfigError
from distbelief.models.layers import Classifier

Initialisation = Literal["caffe", "he"]

CAFFE_BIAS = 0.2
HE_CLASSIFIER_DEVIATION = 0.01


def initialise(model: nn.Module, kind: Initialisation, generator: torch.Generator) -> None:
    """Sets the weights and biases of every convolution and linear layer of ``model`` in place.

    With fan_in the number of inputs of one output:

    - ``caffe``: weights uniform in +-sqrt(3 / fan_in) (Caffe's Xavier filler), biases 0.2, but 0 in
      classifiers, as in ``bvlc_googlenet``.
    - ``he``: weights normal with deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10), biases 0;
      classifiers have the deviation 0.01, so that training starts from near-equal classes.

    The values depend on the generator's state and on the model's structure only. Other modules
    keep their values and draw nothing.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in get_args(Initialisation):
        known = " or ".join(get_args(Initialisation))
        raise ConfigError("init", f"must be {known}, not {kind!r}")
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        fan_in = module.weight[0].numel()
        classifies = isinstance(module, Classifier)
        if kind == "caffe":
            bound = math.sqrt(3 / fan_in)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            bias = 0.0 if classifies else CAFFE_BIAS
        else:
            deviation = HE_CLASSIFIER_DEVIATION if classifies else math.sqrt(2 / fan_in)
            nn.init.normal_(module.weight, 0.0, deviation, generator=generator)
            bias = 0.0
        if module.bias is not None:
            nn.init.constant_(module.bias, bias)
