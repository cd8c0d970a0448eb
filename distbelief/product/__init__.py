"""What is done with a trained model: loading, evaluating and exporting it."""

from distbelief.product.evaluate import Evaluation
from distbelief.product.export import Exported
from distbelief.product.weights import Trained, load

# The functions evaluate and export bear their modules' names, and would hide these here.
__all__ = ["Evaluation", "Exported", "Trained", "load"]
