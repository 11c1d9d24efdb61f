"""Two models of different kinds. Training takes a fraction of a second and gives the same model every time."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from examples.digits import images


class Classifier(Protocol):
    """What both models are after training."""

    def predict_proba(self, pixels: images.Pixels) -> NDArray[np.float64]: ...


def train_svm(digits: images.Digits) -> Classifier:
    """A support vector machine whose distances are calibrated to probabilities."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    model: Classifier = CalibratedClassifierCV(SVC(gamma=0.001, C=10), cv=3, ensemble=False).fit(
        digits.train, digits.train_labels
    )
    return model


def train_forest(digits: images.Digits) -> Classifier:
    """Sixty decision trees."""
    from sklearn.ensemble import RandomForestClassifier

    model: Classifier = RandomForestClassifier(n_estimators=60, random_state=0).fit(digits.train, digits.train_labels)
    return model


def probabilities(model: Classifier, pixels: images.Pixels) -> list[float]:
    """For one image: how likely each of the ten digits is."""
    return [float(p) for p in model.predict_proba(pixels.reshape(1, -1))[0]]


def vote(votes: list[list[float]]) -> int:
    """The digit with the highest mean probability."""
    return int(np.mean(votes, axis=0).argmax())
