"""`Picture`: an image in a result, for whichever of Tune's loggers reads it."""

from __future__ import annotations

import zlib
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class Picture(np.ndarray):
    """Pixels [3, height, width], uint8, as Tune's logger for TensorBoard takes an image.

    That for Weights & Biases wants the colours last, and asks an array that isn't NumPy's own for
    `numpy()`. Those that write text, into result.json and progress.csv, find a few words: a list
    of all pixels would be megabytes. On its way to them, and where Tune keeps the last result of a
    trial, it is compressed.
    """

    @classmethod
    def of(cls, figure: Any) -> Self:
        """Draws a figure of matplotlib's."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)).view(cls)

    def numpy(self) -> NDArray[np.uint8]:
        """Returns the pixels as [height, width, 3]."""
        return np.asarray(self).transpose(1, 2, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Compresses the pixels, most of which are white."""
        return _unpacked, (zlib.compress(self.tobytes()), self.shape)

    def __str__(self) -> str:
        """Says what it is, without the pixels."""
        return f"picture of {' x '.join(map(str, self.shape[:0:-1]))} pixels"

    __repr__ = __str__


def _unpacked(compressed: bytes, shape: tuple[int, ...]) -> Picture:
    return np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(shape).view(Picture)
