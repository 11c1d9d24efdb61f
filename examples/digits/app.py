"""The application: ``POST /predict`` takes a PNG, two models look at it at the same time, their mean decides.

    skate run examples.digits.app:app
    curl -F image=@digit.png http://127.0.0.1:8000/predict

``make demo`` starts it, posts the held-out images and measures.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from fastapi import FastAPI, HTTPException, UploadFile
from pydantic import BaseModel

from examples.digits import images, models
from skate import serve

UPLOAD_MAX: Final = 1024 * 1024  # bytes; a PNG of a digit has some hundred

api = FastAPI(title="Handwritten digits")


class Prediction(BaseModel):
    """``probabilities``: per model, for the digits 0 to 9. ``ms``: spent in the ingress, both models included."""

    label: int
    probabilities: dict[str, list[float]]
    ms: float


@serve.deployment(num_replicas=2)
class SVM:
    """Trains when its replica starts; `def` methods run beside the replica's event loop."""

    def __init__(self) -> None:
        self.model = models.train_svm(images.load())

    def predict(self, pixels: images.Pixels) -> list[float]:
        return models.probabilities(self.model, pixels)


@serve.deployment(num_replicas=2)
class Forest:
    def __init__(self) -> None:
        self.model = models.train_forest(images.load())

    def predict(self, pixels: images.Pixels) -> list[float]:
        return models.probabilities(self.model, pixels)


@serve.deployment(max_ongoing_requests=32)
@serve.ingress(api)
class Ingress:
    def __init__(self, svm: serve.DeploymentHandle[SVM], forest: serve.DeploymentHandle[Forest]) -> None:
        self.svm = svm
        self.forest = forest

    @api.post("/predict")
    async def predict(self, image: UploadFile) -> Prediction:
        started = time.perf_counter()
        png = await image.read(UPLOAD_MAX + 1)
        if len(png) > UPLOAD_MAX:
            raise HTTPException(413, f"the image is larger than {UPLOAD_MAX} bytes")
        try:
            pixels = images.from_png(png)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        svm, forest = await asyncio.gather(self.svm.predict.remote(pixels), self.forest.predict.remote(pixels))
        return Prediction(
            label=models.vote([svm, forest]),
            probabilities={"svm": svm, "forest": forest},
            ms=round((time.perf_counter() - started) * 1000, 3),
        )


app = Ingress.bind(SVM.bind(), Forest.bind())
