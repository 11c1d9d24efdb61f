"""The digits example: what it computes, without Skate, and the whole of it, as `make demo` runs it."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from examples.digits import demo, images, models
from examples.running import ROOT


@pytest.fixture(scope="module")
def digits() -> images.Digits:
    return images.load()


def test_the_split_is_fixed_and_disjoint(digits: images.Digits) -> None:
    assert (len(digits.train), len(digits.held_out)) == (1347, 450)
    assert np.array_equal(images.load().held_out, digits.held_out)
    assert not {row.tobytes() for row in digits.train} & {row.tobytes() for row in digits.held_out}
    assert np.bincount(digits.held_out_labels).min() > 40


def test_png_keeps_every_pixel(digits: images.Digits) -> None:
    for pixels in digits.held_out:
        assert np.array_equal(images.from_png(images.to_png(pixels)), pixels)
    every_ink = np.arange(64, dtype=np.float64) % (images.INK_MAX + 1)
    assert np.array_equal(images.from_png(images.to_png(every_ink)), every_ink)


def test_a_large_colour_image_is_scaled() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (80, 40), "white").save(file, "PNG")
    assert np.array_equal(images.from_png(file.getvalue()), np.full(64, 16.0))


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "GIF")
    return file.getvalue()


def huge() -> bytes:
    file = io.BytesIO()
    Image.new("1", (images.PIXELS_MAX, 2)).save(file, "PNG")
    return file.getvalue()


PNG = images.to_png(np.zeros(64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PNG"),
        (b"hello", "no PNG"),
        (gif(), "no PNG"),
        (PNG[:40], "no PNG|broken"),
        (PNG[:-24], "broken"),
        (PNG.replace(b"IDATx", b"IDATy"), "broken"),
        (huge(), "send at most"),
    ],
    ids=["empty", "text", "gif", "head only", "cut", "garbled", "huge"],
)
def test_a_bad_upload_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.from_png(data)


def test_both_models_and_their_vote_are_good(digits: images.Digits) -> None:
    trained = (models.train_svm(digits), models.train_forest(digits))
    sample = range(0, len(digits.held_out), 3)
    votes = [[models.probabilities(model, digits.held_out[n]) for model in trained] for n in sample]
    labels = digits.held_out_labels[list(sample)]
    for n, floor in ((0, 0.97), (1, 0.95)):
        assert np.mean([np.argmax(vote[n]) for vote in votes] == labels) >= floor
    assert np.mean([models.vote(vote) for vote in votes] == labels) >= 0.97
    assert all(len(each) == 10 and abs(sum(each) - 1) < 1e-6 for vote in votes for each in vote)


def test_vote_is_the_mean() -> None:
    assert models.vote([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4]]) == 1


def test_figures() -> None:
    samples = [demo.Sample(expected=n % 10, label=n % 10 if n else 5, seconds=(n + 1) / 1000) for n in range(100)]
    assert demo.figures(samples, elapsed_s=4.0) == demo.Figures(0.99, 25.0, 50.0, 99.0)
    assert demo.percentile([7.0], 0.99) == 7.0


@pytest.mark.e2e
def test_the_demo_runs() -> None:
    """Starts, predicts, is accurate, ends with Ctrl-C and leaves nothing: its exit code says all of that."""
    command = [sys.executable, "-m", "examples.digits.demo", "--images", "60", "--connections", "4"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=80)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "accuracy" in run.stdout
