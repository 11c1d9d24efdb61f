"""The images: scikit-learn's bundled scans of handwritten digits, and their way through PNG and back.

The scans are 8 x 8 with ink from 0 to 16; as 8-bit PNG ink 16 is white (255). Both ways are exact. Any
other picture is turned to grey and scaled to 8 x 8, so whoever has a drawing of a digit may try it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SIDE: Final = 8
INK_MAX: Final = 16
PIXELS_MAX: Final = 4096 * 4096  # of an upload: more is no drawing of a digit, and unpacking it would cost memory
HELD_OUT: Final = 0.25

Pixels = NDArray[np.float64]  # 64 values from 0 to 16, row by row


@dataclass(frozen=True)
class Digits:
    """Images (n x 64) and the digits they show. ``held_out`` ones are never seen in training."""

    train: Pixels
    train_labels: NDArray[np.int64]
    held_out: Pixels
    held_out_labels: NDArray[np.int64]


def load() -> Digits:
    """The 1,797 scans in a fixed split, the same in every process."""
    from sklearn.datasets import load_digits  # slow to import; only who trains or asks needs it
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=HELD_OUT, random_state=0, stratify=labels
    )
    return Digits(train, train_labels, held_out, held_out_labels)


def to_png(pixels: Pixels) -> bytes:
    ink = np.rint(pixels.reshape(SIDE, SIDE) * (255 / INK_MAX)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ink).save(file, "PNG")
    return file.getvalue()


def from_png(data: bytes) -> Pixels:
    """Raises ValueError, with a message for whoever sent it, when this is no PNG of sensible size."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > PIXELS_MAX:
                raise ValueError(f"the image has {image.width} x {image.height} pixels; send at most {PIXELS_MAX}")
            grey = image.convert("L")
            if grey.size != (SIDE, SIDE):
                grey = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    except UnidentifiedImageError:
        raise ValueError("this is no PNG image; send one as the form field 'image'") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises for broken PNGs
        raise ValueError(f"the PNG image is broken: {error}") from error
    return np.rint(np.asarray(grey, dtype=np.float64).reshape(-1) * (INK_MAX / 255))
