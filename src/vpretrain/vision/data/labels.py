"""Decode the numbers and colours of label maps to classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from vpretrain.system.errors import abbreviated
from vpretrain.vision.data.decoding import BadFile, ImageSource, packed
from vpretrain.vision.data.images import IGNORE

NUMBERS_SHOWN = 5
Others = Literal["refuse", "void"]


@dataclass(frozen=True)
class LabelCode:
    """Which number in a label map stands for which class.

    Args:
        classes: number of classes, from 2 to 255.
        void: number of pixels without a label, which become ``IGNORE``; None: there is none. 255 is
            void too, unless it stands for a class.
        first: number of class 0; class c is ``first + c``.
        values: numbers of classes 0, 1, ...; overrides ``first``.
        mapped: pairs of number and class, with class ``IGNORE`` for no label; overrides both.
        colours: whether the numbers are :func:`packed` colours.
        others: whether other numbers are refused or count as no label.

    Raises:
        ValueError: ``classes`` is out of range, or two classes share a number.
    """

    classes: int
    void: int | None = None
    first: int = 0
    values: tuple[int, ...] | None = None
    mapped: tuple[tuple[int, int], ...] | None = None
    colours: bool = False
    others: Others = "refuse"

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= IGNORE:
            raise ValueError(f"there are 2 to {IGNORE} classes, got {self.classes}")
        if self.mapped is None and len({*self.class_of}) != self.classes:
            raise ValueError(f"{self.classes} classes need as many distinct values")

    @classmethod
    def painted(cls, colours: Sequence[tuple[int, int, int]], others: Others = "refuse") -> Self:
        """Return the code of maps in which class c has the c-th colour."""
        numbers = packed(np.array(colours, np.uint8)).tolist()
        return cls(len(colours), values=tuple(numbers), colours=True, others=others)

    @cached_property
    def class_of(self) -> Mapping[int, int]:
        """Class by number."""
        if self.mapped is not None:
            return dict(self.mapped)
        numbers = self.values or range(self.first, self.first + self.classes)
        return {number: at for at, number in enumerate(numbers)}

    @property
    def void_numbers(self) -> list[int]:
        """Numbers of pixels without a label; empty for colours."""
        void = set() if self.colours else {IGNORE, *(() if self.void is None else (self.void,))}
        return sorted(void - {*self.class_of})

    def written(self, label: int) -> str:
        """Return the numbers or colours that stand for a class, for messages."""
        return " or ".join(self._shown(n) for n, at in self.class_of.items() if at == label)

    def decode(self, path: ImageSource, written: np.ndarray) -> Tensor:
        """Decode numbers to classes from 0 and ``IGNORE``, int64 of the map's shape.

        Raises:
            BadFile: a number is neither a class nor void, and ``others`` is "refuse".
        """
        order = sorted(self.class_of)
        numbers, classes = np.array(order), np.array([self.class_of[n] for n in order])
        places = np.searchsorted(numbers, written) % len(numbers)
        known = numbers[places] == written
        void = np.isin(written, self.void_numbers)
        wrong = ~void & ~known
        if self.others == "refuse" and wrong.any():
            raise self._out_of_range(path, np.unique(written[wrong]))
        return torch.from_numpy(np.where(known & ~void, classes[places], IGNORE))

    def _shown(self, number: int) -> str:
        return str([number >> 16, number >> 8 & 255, number & 255]) if self.colours else str(number)

    def _out_of_range(self, path: ImageSource, numbers: np.ndarray) -> BadFile:
        message = (
            "a class number is out of range: correct the map, or the keys it is read with "
            "(classes, void, label_values, label_map)"
        )
        if self.colours:
            message = "a colour is none of label_colours: add it, or set other_labels: void"
        shown = ", ".join(self._shown(number) for number in numbers[:NUMBERS_SHOWN].tolist())
        if more := len(numbers) - NUMBERS_SHOWN:
            shown += f", and {more} more" if more > 0 else ""
        accepted = abbreviated(map(self._shown, self.class_of))
        if self.values is None and self.mapped is None:
            accepted = f"{self.first} to {self.first + self.classes - 1}"
        unlabelled = IGNORE if self.void is None else self.void
        if unlabelled in self.void_numbers:
            accepted += f"; without a label {unlabelled}"
        return BadFile(path, message, shown, accepted)
