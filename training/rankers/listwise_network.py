"""The listwise ranker's network as it scores: numpy alone, so that a process that only serves needs no torch.

logit = exp(a) * base + f(x); f is cross layers and a perceptron side by side, x the standardised features:

    c_0 = x,  c_(l+1) = x * (W_l c_l + b_l) + c_l;   h_0 = x,  h_(l+1) = relu(V_l h_l + d_l);   f = w . (c, h) + e

Source: Wang et al. 2021 (DCN V2), equation 1. Legend: `n` candidates, `F` features.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from training.interactions import FloatArray

CLIP = 5.0
"""Standardised features are cut here: beyond, a value is an outlier of training or of another time."""
DEEP_STEP = 3
"""A layer of the perceptron is named by its place in the torch module: linear, ReLU, dropout."""

Weights = Mapping[str, npt.NDArray[Any]]


def parameter_shapes(num_features: int, hidden: tuple[int, ...], cross_layers: int) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by its name."""
    found: dict[str, tuple[int, ...]] = dict.fromkeys(("mean", "scale", "attribution"), (num_features,))
    found["log_temperature"] = ()
    for layer in range(cross_layers):
        found |= {f"cross.{layer}.weight": (num_features, num_features), f"cross.{layer}.bias": (num_features,)}
    for layer, (before, after) in enumerate(itertools.pairwise((num_features, *hidden))):
        name = f"deep.{DEEP_STEP * layer}"
        found |= {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
    return found | {"head.weight": (1, num_features + (num_features, *hidden)[-1]), "head.bias": (1,)}


class ListwiseNetwork:
    """f of the module's formula with its input scaling, and its gradient."""

    def __init__(self, weights: Weights, num_features: int, hidden: tuple[int, ...], cross_layers: int) -> None:
        """Weights: the trained state by name.

        Raises:
            ValueError: one is missing, is too many, or has another shape.
        """
        expected = parameter_shapes(num_features, hidden, cross_layers)
        if expected.keys() != weights.keys():
            raise ValueError(f"{min(expected.keys() ^ weights.keys())} is too few or too many")
        # A file of arrays keeps a number as an array of one.
        self.weights = {name: w.reshape(()) if expected[name] == () and w.size == 1 else w for name, w in weights.items()}
        for name, shape in expected.items():
            if self.weights[name].shape != shape:
                raise ValueError(f"{name} has shape {self.weights[name].shape}, not {shape}")
        self._cross = [self._layer(f"cross.{layer}") for layer in range(cross_layers)]
        self._deep = [self._layer(f"deep.{DEEP_STEP * layer}") for layer in range(len(hidden))]
        self._to_cross, self._to_deep = np.split(self.weights["head.weight"][0], [num_features])

    @property
    def temperature(self) -> float:
        """exp(a): what one unit of the base adds to the logit."""
        return float(np.exp(self.weights["log_temperature"]))

    def logits(self, features: FloatArray, base: FloatArray) -> FloatArray:
        """features (n, F), base (n,) -> (n,) float32. NaN features count as average ones."""
        return np.asarray(np.float32(self.temperature) * base + self.correction(self.standardised(features)), dtype=np.float32)

    def standardised(self, features: FloatArray) -> FloatArray:
        """Features (n, F) on the scale of training, cut at its ends; 0 where they are not known."""
        scaled: FloatArray = features - self.weights["mean"]
        with np.errstate(invalid="ignore"):  # an infinite value of a feature that is switched off
            scaled *= self.weights["scale"]
        np.clip(scaled, -CLIP, CLIP, out=scaled)
        scaled[np.isnan(scaled)] = 0
        return scaled

    def correction(self, x: FloatArray) -> FloatArray:
        """f: standardised features (n, F) -> (n,)."""
        crossed, deep = self._crossed(x)[-1], self._hidden(x)[-1]
        corrected: FloatArray = crossed @ self._to_cross + deep @ self._to_deep + self.weights["head.bias"]
        return corrected

    def gradient(self, x: FloatArray) -> FloatArray:
        """(n, F): derivative of the correction at each standardised feature."""
        crossed, hidden = self._crossed(x), self._hidden(x)
        total = np.zeros_like(x)
        grad = np.broadcast_to(self._to_cross, x.shape)
        for (weight, bias), before in zip(reversed(self._cross), reversed(crossed[:-1]), strict=True):
            total += grad * (before @ weight.T + bias)
            grad = grad + (grad * x) @ weight
        total += grad
        grad = np.broadcast_to(self._to_deep, hidden[-1].shape)
        for (weight, _), after in zip(reversed(self._deep), reversed(hidden[1:]), strict=True):
            grad = (grad * (after > 0)) @ weight
        total += grad
        return total

    def _crossed(self, x: FloatArray) -> list[FloatArray]:
        """c_0 and on."""
        found = [x]
        for weight, bias in self._cross:
            found.append(x * (found[-1] @ weight.T + bias) + found[-1])
        return found

    def _hidden(self, x: FloatArray) -> list[FloatArray]:
        """h_0 and on."""
        found = [x]
        for weight, bias in self._deep:
            found.append(np.maximum(found[-1] @ weight.T + bias, 0))
        return found

    def _layer(self, name: str) -> tuple[FloatArray, FloatArray]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
