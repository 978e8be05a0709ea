"""What was found wrong with a set of annotations: what kinds, how often, and of which ids."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fpg_zoo.text import printable

_SHOWN = 5  # ids of a kind that a summary names; all are kept

# Annotations that are left out.
BOX_MALFORMED = "box that is not four numbers"
BOX_NO_SIZE = "box of no size"
BOX_OUTSIDE = "box outside its image"
CROWD_UNCLEAR = "iscrowd that is neither 0 nor 1"
UNKNOWN_CATEGORY = "annotation of an unknown category id"
UNKNOWN_IMAGE = "annotation of an unknown image id"
# Annotation files of single images, with all that they may hold.
DOCTYPE = "annotation file with a document type, which can make it endless"
ENCODING_WRONG = "annotation file in an unknown encoding, or not in the one it declares (UTF-8 if none)"
FILE_MALFORMED = "annotation file that is not VOC's XML"
FILE_TWICE = "two annotation files of one name"
FILE_UNREADABLE = "annotation file that cannot be read"
LEFT_OUT = (
    *(BOX_MALFORMED, BOX_NO_SIZE, BOX_OUTSIDE, CROWD_UNCLEAR, UNKNOWN_CATEGORY, UNKNOWN_IMAGE),
    *(DOCTYPE, ENCODING_WRONG, FILE_MALFORMED, FILE_TWICE, FILE_UNREADABLE),
)
# Annotations that are kept.
AREA_WRONG = "area that is no number from 0 to 1e10 (the box's taken)"
BOX_CLIPPED = "box that reaches out of its image (clipped)"
BOX_OF_MASK = "annotation without a box (the mask's taken)"
CATEGORY_ID_TYPE = "category id as a text in one place and a number in the other (read as the same)"
CROWD_NULL = "iscrowd that is null (read as 0)"
CROWD_TEXT = "iscrowd that is a text (read as 0 or 1)"
IMAGE_ID_TYPE = "image id as a text in one place and a number in the other (read as the same)"
MASK_MALFORMED = "malformed polygons or RLE (kept, without a mask)"
MASK_MISSING = "annotation without polygons or RLE (kept, without a mask)"
MASK_TOO_LARGE = "mask of too large an image, or too long an outline (kept, without a mask)"
POLYGON_WITHOUT_AREA = "polygon of fewer than three points (the others kept)"
# Images that are kept.
IMAGE_FOUND = "image found under a corrected file name"
SIZE_READ = "image without a usable size (read from its file)"
# Categories.
CATEGORY_TEXT = "category id that is a text (read as a number)"
CATEGORY_ROOT = "root category that no annotation uses (left out)"
# Images that are left out.
IMAGE_AMBIGUOUS = "image whose file name, as corrected, is that of another image"
IMAGE_UNREADABLE = "image that cannot be read"
IMAGE_MALFORMED = "image entry without an id or file name"
IMAGE_TWICE = "image id used before"
IMAGE_MISSING = "image whose file is not there"
IMAGE_SMALL = "image too small to train on"
IMAGE_EMPTY = "image without an object to train on"
# Where images are held out.
ABSENT_IN_TRAINING = "class of which the images to train on show no object"
ABSENT_HELD_OUT = "class of which the images held out show no object"


class Report:
    """Everything that was refused or repaired, by kind. Falsy while there is nothing."""

    def __init__(self) -> None:
        self._ids: dict[str, list[int | str]] = {}
        self._examples: dict[str, str] = {}

    def add(self, problem: str, identity: int | str, example: str | None = None) -> None:
        """Count one.

        Args:
            problem: what is wrong, as a phrase in the singular.
            identity: the id, or in place of one where it stands, as `annotations[3]`.
            example: more about it. The first of a kind is told.
        """
        self._ids.setdefault(problem, []).append(identity)
        if example is not None:
            self._examples.setdefault(problem, example)

    @property
    def ids_by_problem(self) -> Mapping[str, tuple[int | str, ...]]:
        """Per kind the ids, in the order they were met."""
        return {problem: tuple(ids) for problem, ids in self._ids.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Per kind how many."""
        return {problem: len(ids) for problem, ids in self._ids.items()}

    def __bool__(self) -> bool:
        return bool(self._ids)

    def lines(self, problems: Collection[str] | None = None) -> list[str]:
        """A line per kind, or per one of `problems`: how many, the first ids, and the first example."""
        lines = []
        for problem, ids in self._ids.items():
            if problems is not None and problem not in problems:
                continue
            more = ", ..." if len(ids) > _SHOWN else ""
            example = f" ({printable(self._examples[problem])})" if problem in self._examples else ""
            lines.append(f"{len(ids)} x {problem}: {', '.join(map(printable, ids[:_SHOWN]))}{more}{example}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
