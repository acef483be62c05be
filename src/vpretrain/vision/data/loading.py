"""From the recipe's data section to pictures; every problem in them is found before anything is
trained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vpretrain.system.errors import Problem, UserError, user_error
from vpretrain.vision.data import readers, scenes
from vpretrain.vision.data.decoding import Decoding
from vpretrain.vision.data.files import Folder, LabelCode, Reading
from vpretrain.vision.data.images import Picture, Pictures, Some
from vpretrain.vision.data.kept import GIB, PictureStore
from vpretrain.vision.data.overlap import leaks, repeats, repeats_warning
from vpretrain.vision.data.stream import Source
from vpretrain.vision.evaluation.retrieval import Searched, read_retrieval
from vpretrain.vision.feedback.tasks import (
    Classification,
    Depth,
    DownstreamTask,
    Segmentation,
    target_problems,
)
from vpretrain.vision.recipe import (
    Ade20kPictures,
    FolderPictures,
    ImageNetPictures,
    NyuV2Pictures,
    PictureSet,
    RetrievalSection,
    ScenePictures,
    VisionRecipe,
)

ADE20K_CLASSES = 150


@dataclass(frozen=True, eq=False)
class PictureSets:
    """All pictures of a recipe.

    Args:
        stream: the sources, without labels.
        train, meta: the two parts of the feedback set.
        probed: what the probes learn from.
        evaluation: the pictures of ``evaluate.split``.
        tasks: by name: what labels can be asked for, with as many classes as there are.
        skipped: what is wrong with the pictures that ``on_bad_row: skip`` left out.
        warnings: files that are not read, and pictures that the stream holds twice.
        retrieval: what is searched, by the name that ``evaluate.retrieval`` gives it.
    """

    stream: list[Source]
    train: list[Picture]
    meta: list[Picture]
    probed: list[Picture]
    evaluation: list[Picture]
    tasks: dict[str, DownstreamTask]
    skipped: list[Problem]
    warnings: list[Problem]
    retrieval: dict[str, Searched]


def read(recipe: VisionRecipe) -> PictureSets:
    """Reads every set.

    Raises:
        UserError: with the problems of all sets at once; also when pictures of the stream, of the
            feedback set or of the probes' training set are among those that are evaluated on, or a
            task finds no targets.
    """
    data, split = recipe.data, recipe.evaluate.split
    reader = _Reader(recipe)
    stream = reader.stream()
    names = [source.name for source in data.stream]
    if len(set(names)) < len(names):
        message = "two sources have the same name; rename one"
        reader.problems.append(Problem("data.stream", ", ".join(names), "distinct names", message))
    train: list[Picture] = []
    meta: list[Picture] = []
    for i, part in enumerate(data.feedback.sets):
        where = f"data.feedback.sets.{i}"
        found = reader.labelled(part.pictures, f"{where}.pictures")
        if found and len(found) < part.train + part.meta:
            message = "there are not so many pictures; ask for fewer, or add some"
            shown, accepted = f"{part.train} + {part.meta}", f"{len(found)} in all, or fewer"
            reader.problems.append(Problem(f"{where}.train", shown, accepted, message))
        drawn = random.Random(f"feedback {i}").sample(found, len(found))
        train += drawn[: part.train]
        meta += drawn[part.train : part.train + part.meta]
    probed, evaluation = (
        [
            p
            for i, spec in enumerate(data.evaluation[s])
            for p in reader.labelled(spec, f"data.evaluation.{s}.{i}")
        ]
        for s in ("train", split)
    )
    tasks: dict[str, DownstreamTask] = {
        task.name: task
        for task in (Segmentation(reader.classes or 1), Depth(), Classification(reader.categories))
    }
    searched = {
        name: it
        for name, spec in recipe.evaluate.retrieval.items()
        if (it := reader.searched(spec))
    }
    if not reader.problems:
        reader.problems += _misfits(recipe, tasks, train, meta, probed, evaluation)
        for what, others in (
            ("data.feedback.sets", [*train, *meta]),
            ("data.evaluation.train", probed),
        ):
            reader.problems += leaks(what, others, evaluation, split)
        for i, source in enumerate(stream):
            where = f"data.stream.{i}.pictures"
            reader.problems += leaks(where, source.pictures, evaluation, split)
    if reader.problems:
        raise UserError(*reader.problems)
    return PictureSets(
        stream, train, meta, probed, evaluation, tasks, reader.skipped, reader.warnings, searched
    )


class _Reader:
    """Reads the sets of a recipe, each once, and remembers what they say of classes and what is
    wrong with them.
    """

    def __init__(self, recipe: VisionRecipe) -> None:
        self.data = recipe.data
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.warnings: list[Problem] = []
        self.classes: int | None = None
        self.categories = 1
        self._known: dict[str, Pictures] = {}

    def stream(self) -> list[Source]:
        """The sources that can be read; of pictures that are there twice, what ``data.duplicates``
        says.
        """
        sources: list[Source] = []
        seen: dict[str, str] = {}
        for i, source in enumerate(self.data.stream):
            where = f"data.stream.{i}.pictures"
            pictures = self.unlabelled(source.pictures, where)
            if pictures is None:
                continue
            copies = repeats(pictures, seen)
            if copies and self.data.duplicates == "drop":
                left_out = {place for place, _, _ in copies}
                kept = [place for place in range(len(pictures)) if place not in left_out]
                pictures = Some(pictures, kept)
            elif copies:
                pairs = [(name, first) for _, name, first in copies]
                self.warnings.append(repeats_warning(where, pictures, pairs))
            sources.append(Source(source.name, pictures, source.weight))
        return sources

    def unlabelled(self, spec: Any, where: str) -> Pictures | None:
        """Pictures of the stream, their shorter side brought to ``load_size``; None where there is
        a problem with them.
        """
        size = self.data.load_size or self.data.image_size
        try:
            return self._chosen(spec, self._read(spec, size, labelled=False, where=where), where)
        except UserError as error:
            self.problems += error.problems
            return None

    def labelled(self, spec: Any, where: str) -> list[Picture]:
        """Pictures with what is known of them, decoded, of the size that the recipe says; empty
        where there is a problem.
        """
        size = spec.size or (self.data.image_size, self.data.image_size)
        try:
            chosen = self._chosen(spec, self._read(spec, size, labelled=True, where=where), where)
            found = _decoded(chosen, self.data.memory_gib * GIB)
            if isinstance(spec, NyuV2Pictures) and spec.eigen_crop:
                found = [
                    replace(p, depth=p.depth * readers.eigen_crop(p.depth))
                    for p in found
                    if p.depth is not None
                ]
        except UserError as error:
            self.problems += error.problems
            return []
        self.categories = max(
            [self.categories, *(1 + p.category for p in found if p.category is not None)]
        )
        return found

    def searched(self, spec: RetrievalSection) -> Searched | None:
        """Queries and database, decoded when they are scored; None where there is a problem with
        them.
        """
        root = self.data.root.expanduser()
        try:
            return read_retrieval(
                root / spec.truth, root / spec.images, reading=self._reading(spec.size)
            )
        except UserError as error:
            self.problems += error.problems
            return None

    def _chosen(self, spec: PictureSet, pictures: Pictures, where: str) -> Pictures:
        places = range(len(pictures))[spec.skip :][: spec.count]
        if not places:
            message, accepted = (
                "no picture of the set is left; skip fewer",
                f"0 to {len(pictures) - 1}",
            )
            raise user_error(f"{where}.skip", message, value=spec.skip, accepted=accepted)
        return pictures if len(places) == len(pictures) else Some(pictures, places)

    def _read(self, spec: Any, size: Any, *, labelled: bool, where: str) -> Pictures:
        key = spec.model_dump_json(exclude={"skip", "count", "size", "eigen_crop"}) + repr(
            (size, labelled)
        )
        if isinstance(spec, ScenePictures):
            side = size if isinstance(size, int) else size[0]
            self._has_classes(len(scenes.CLASSES), where, labelled)
            return scenes.scenes(
                spec.split, spec.skip + spec.count, side, spec.seed, labelled=labelled
            )
        if isinstance(spec, FolderPictures):
            self._has_classes(spec.classes, where, labelled)
        if isinstance(spec, Ade20kPictures):
            self._has_classes(ADE20K_CLASSES, where, labelled)
        if key not in self._known:
            self._known[key], skipped, unread = self._from_files(spec, size, labelled)
            self.skipped += [note for note in skipped if note not in self.skipped]
            self.warnings += [note for note in unread if note not in self.warnings]
        return self._known[key]

    def _reading(self, size: Any) -> Reading:
        data = self.data
        return Reading(
            size=size,
            decoding=Decoding(data.background, data.white_level),
            memory_bytes=data.memory_gib * GIB,
        )

    def _from_files(self, spec: Any, size: Any, labelled: bool) -> readers.FolderContents:
        root, skip, reading = self.data.root.expanduser(), self.data.on_bad_row, self._reading(size)
        path = root / (spec.images if isinstance(spec, FolderPictures) else spec.path).expanduser()
        if isinstance(spec, ImageNetPictures):
            return readers.read_categories(path, reading=reading, on_bad_row=skip, check=spec.check)
        if isinstance(spec, FolderPictures):
            maps = [None if f is None else root / f.expanduser() for f in (spec.labels, spec.depth)]
            if not labelled:
                apart = [each for each in maps if each is not None]
                return readers.read_folder(path, reading=reading, on_bad_row=skip, apart_from=apart)
            if spec.classes is not None:
                values = None if spec.label_values is None else tuple(spec.label_values)
                code = LabelCode(spec.classes, spec.void, spec.first_class, values)
                reading = replace(reading, code=code)
            reading = replace(reading, depth_metres=spec.depth_metres)
            return readers.read_folder(path, *maps, reading=reading, on_bad_row=skip)
        if not labelled:
            ade20k = isinstance(spec, Ade20kPictures)
            images = path / "images" / spec.split if ade20k else path / spec.split / "rgb"
            return readers.read_folder(images, reading=reading, on_bad_row=skip)
        kind = readers.read_ade20k if isinstance(spec, Ade20kPictures) else readers.read_nyuv2
        return kind(path, spec.split, reading=reading, on_bad_row=skip)

    def _has_classes(self, classes: int | None, where: str, labelled: bool) -> None:
        if not labelled or classes is None:
            return
        if self.classes not in (None, classes):
            message = "all label maps of a recipe have the same classes, and these have others"
            raise user_error(
                where, message, value=f"{classes} classes", accepted=f"{self.classes} classes"
            )
        self.classes = classes


def _decoded(pictures: Pictures, memory_bytes: float) -> list[Picture]:
    """All pictures of a set; those that are decoded anew when drawn, in bounded memory."""
    whole = pictures.pictures if isinstance(pictures, Some) else pictures
    store = PictureStore(memory_bytes if isinstance(whole, Folder) else math.inf)
    for place in range(len(pictures)):
        store.add(pictures[place])
    return store.pictures()


def needed(recipe: VisionRecipe) -> list[str]:
    """The downstream tasks that the recipe's probes are about."""
    return list(
        dict.fromkeys(
            "classification" if probe == "knn" else probe for probe in recipe.evaluate.probes
        )
    )


def _misfits(
    recipe: VisionRecipe,
    tasks: dict[str, DownstreamTask],
    train: list[Picture],
    meta: list[Picture],
    probed: list[Picture],
    evaluation: list[Picture],
) -> Iterator[Problem]:
    """Tasks without targets, or with wrong ones, and sets too small."""
    parts = {"data.feedback.sets (train)": train, "data.feedback.sets (meta)": meta}
    wanted: dict[str, list[str]] = {where: list(recipe.data.feedback.tasks) for where in parts}
    for name, pictures in (("train", probed), (recipe.evaluate.split, evaluation)):
        parts[f"data.evaluation.{name}"] = pictures
        wanted[f"data.evaluation.{name}"] = needed(recipe)
    for where, pictures in parts.items():
        yield from target_problems([tasks[name] for name in wanted[where]], pictures, where)
    section = recipe.data.feedback
    for name in section.tasks:
        count = sum(tasks[name].has(picture) for picture in meta)
        if count and count < (least := section.batch_size * section.batches):
            message = (
                f"the meta part is smaller than {section.batches} batches without a picture "
                f"in common for {name}"
            )
            accepted = f"1 to {count // section.batches}: there are {count} pictures (need {least})"
            yield Problem("data.feedback.batch_size", str(section.batch_size), accepted, message)
    if "knn" in recipe.evaluate.probes and recipe.evaluate.neighbours > len(probed):
        accepted = f"1 to {len(probed)}"
        message = "there are not so many training pictures"
        yield Problem("evaluate.neighbours", str(recipe.evaluate.neighbours), accepted, message)
