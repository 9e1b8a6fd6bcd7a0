"""Images for commands that explain in PyTorch: one after the other; those that cannot be read are passed on as such."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..accel.bundle import class_index
from ..accel.image import ImageSource, load_image, resize_image, source_name
from ..accel.results import Failure, ImageExplanation
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError, ModelError, OutOfMemory

__all__ = ["Answers", "LoadedImage", "Question", "asked_classes", "chunks", "explained", "loaded"]

Answers = list[ImageExplanation | Failure]
"""The explanations of one image."""


class LoadedImage(NamedTuple):
    """An image twice: as it is, and as the model takes it."""

    name: str
    whole: Uint8
    input: Uint8


class Question(NamedTuple):
    """What is explained: an image for a class, negative for the predicted one, which the user called so."""

    image: LoadedImage
    target: int = -1
    label: str = ""


def asked_classes(targets: Iterable[str], class_names: Sequence[str]) -> dict[str, int]:
    """Each target as the user called it with its index; the predicted class (−1) if there is none."""
    return {target: class_index(target, class_names) for target in targets} or {"": -1}


def loaded(files: Sequence[ImageSource], spec: ImageSpec, max_pixels: int) -> Iterator[LoadedImage | Failure]:
    """The images of some files, in their order."""
    for file in files:
        try:
            image = load_image(file, max_pixels=max_pixels)
        except ImageError as error:
            yield Failure(source_name(file), str(error))
            continue
        yield LoadedImage(source_name(file), image, resize_image(image, spec))


def chunks(work: Iterable[LoadedImage | Failure], size: int) -> Iterator[list[LoadedImage | Failure]]:
    """So many at a time."""
    waiting = iter(work)
    while chunk := list(itertools.islice(waiting, size)):
        yield chunk


def explained(
    explain: Callable[[Sequence[Question]], list[Answers]],
    images: Sequence[LoadedImage],
    asked: Mapping[str, int],
    doing: str,
) -> list[Answers]:
    """Each image's explanations for all classes; an optimisation that breaks off alone does not stop the others.

    Args:
        explain: answers questions together.
        images: any number.
        asked: the classes, see `asked_classes`.
        doing: in messages, as "fine-tuning".

    Raises:
        OutOfMemory: with the batch size to try.
    """
    questions = [Question(image, target, label) for image in images for label, target in asked.items()]
    answers = _answered(explain, questions, doing)
    each = len(asked)
    return [list(itertools.chain(*answers[at : at + each])) for at in range(0, len(answers), each)]


def _answered(
    explain: Callable[[Sequence[Question]], list[Answers]], questions: Sequence[Question], doing: str
) -> list[Answers]:
    if not questions:
        return []
    try:
        return explain(questions)
    except ModelError as error:
        if len(questions) == 1:
            (image, _, label), which = questions[0], ""
            if label:
                which = f", class '{label}'"
            return [[Failure(image.name, f"{image.name}{which}: {error}")]]
        return [found for question in questions for found in _answered(explain, [question], doing)]
    except RuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        advice = f"try --batch-size {max(1, len(questions) // 4)}" if len(questions) > 1 else "use a smaller model"
        raise OutOfMemory(f"{doing} {len(questions)} masks at once does not fit into memory; {advice}") from None
