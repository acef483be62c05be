"""Read the pictures of a recipe's data section and collect all problems with them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vpretrain.system.errors import Problem, UserError, collecting, user_error
from vpretrain.system.locations import under
from vpretrain.system.phases import phase
from vpretrain.vision.data import containers, readers, scenes
from vpretrain.vision.data.checks import data_warnings, task_problems
from vpretrain.vision.data.decoding import Decoding
from vpretrain.vision.data.files import NYU_DEPTH_METRES, Files, Folder, Reading
from vpretrain.vision.data.images import Picture, Pictures, Subset
from vpretrain.vision.data.labels import LabelCode
from vpretrain.vision.data.overlap import leaks, repeats, repeats_warning
from vpretrain.vision.data.picture_store import GIB, PictureStore
from vpretrain.vision.data.stream import Source
from vpretrain.vision.evaluation.retrieval import RetrievalSet, read_retrieval
from vpretrain.vision.feedback.tasks import Classification, Depth, DownstreamTask, Segmentation
from vpretrain.vision.recipe import VisionRecipe
from vpretrain.vision.recipe.evaluate import RetrievalSection
from vpretrain.vision.recipe.pictures import (
    Ade20kPictures,
    FolderPictures,
    ImageNetPictures,
    LabelledPictures,
    NyuV2Pictures,
    PictureSet,
    ScenePictures,
    TablePictures,
    TarPictures,
)

ADE20K_CLASSES = 150


@dataclass(frozen=True, eq=False)
class PictureSets:
    """All pictures of a recipe.

    Args:
        stream: the sources, without labels.
        train, meta: the two parts of the feedback set.
        probed: training pictures of the probes.
        evaluation: pictures of ``evaluate.split``.
        tasks: downstream tasks by name, with the number of classes in the data.
        skipped: problems of the pictures that ``on_bad_row: skip`` left out.
        warnings: unread files, repeated pictures in the stream, and settings that are often wrong.
        retrieval: retrieval sets by their names in ``evaluate.retrieval``.
    """

    stream: list[Source]
    train: list[Picture]
    meta: list[Picture]
    probed: list[Picture]
    evaluation: list[Picture]
    tasks: dict[str, DownstreamTask]
    skipped: list[Problem]
    warnings: list[Problem]
    retrieval: dict[str, RetrievalSet]


def read(recipe: VisionRecipe) -> PictureSets:
    """Read every set of a recipe.

    Raises:
        UserError: with the problems of all sets at once, including pictures that are both trained
            and evaluated on, and tasks without targets.
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
        needed, order = part.train + part.meta, random.Random(f"feedback {i}")
        drawn = reader.labelled(part.pictures, f"{where}.pictures", order=order, most=needed)
        if drawn and len(drawn) < needed:
            message = "there are not so many pictures; ask for fewer, or add some"
            shown, accepted = f"{part.train} + {part.meta}", f"{len(drawn)} in all, or fewer"
            reader.problems.append(Problem(f"{where}.train", shown, accepted, message))
        train += drawn[: part.train]
        meta += drawn[part.train :]
    probed, evaluation = (
        [
            picture
            for i, spec in enumerate(data.evaluation[name])
            for picture in reader.labelled(spec, f"data.evaluation.{name}.{i}")
        ]
        for name in ("train", split)
    )
    tasks = reader.tasks()
    specs = recipe.evaluate.retrieval
    read_sets = {name: reader.retrieval_set(spec) for name, spec in specs.items()}
    searched = {name: each for name, each in read_sets.items() if each is not None}
    streamed = sum(len(source.pictures) for source in stream)
    if not reader.problems:
        parts = {
            "data.feedback.sets": [*train, *meta],
            "data.evaluation.train": probed,
            **{f"data.stream.{i}.pictures": source.pictures for i, source in enumerate(stream)},
        }
        reader.problems += task_problems(recipe, streamed, tasks, train, meta, probed, evaluation)
        for where, others in parts.items():
            reader.problems += leaks(where, others, evaluation, split)
    if reader.problems:
        raise UserError(*reader.problems)
    reader.warnings += data_warnings(recipe, streamed, [*train, *meta], probed, evaluation)
    return PictureSets(
        stream, train, meta, probed, evaluation, tasks, reader.skipped, reader.warnings, searched
    )


class _Reader:
    """Reads the sets of a recipe, each once; collects classes and problems."""

    def __init__(self, recipe: VisionRecipe) -> None:
        self.data = recipe.data
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.warnings: list[Problem] = []
        self.classes: int | None = None
        self.categories = 1
        self._category_names: Sequence[str] = ()
        self._depth_ranges: list[tuple[float, float]] = []
        self._tars = containers.Tars()
        self._known: dict[str, Pictures] = {}

    def tasks(self) -> dict[str, DownstreamTask]:
        """Return the tasks by name; depths are valid from the lowest to the highest of all sets."""
        lowest, highest = zip(*(self._depth_ranges or [NYU_DEPTH_METRES]), strict=True)
        tasks: list[DownstreamTask] = [
            Segmentation(self.classes or 1),
            Depth(valid_metres=(min(lowest), max(highest))),
            Classification(self.categories),
        ]
        return {task.name: task for task in tasks}

    def stream(self) -> list[Source]:
        """Read the sources; repeated pictures are treated as ``data.duplicates`` says."""
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
                if not kept:
                    message = "all of its pictures are copies of earlier sources: take it out"
                    shown, accepted = f"{len(copies)} copies", "a source with pictures of its own"
                    self.problems.append(Problem(f"data.stream.{i}", shown, accepted, message))
                    continue
                pictures = Subset(pictures, kept)
            elif copies:
                pairs = [(name, first) for _, name, first in copies]
                self.warnings.append(repeats_warning(where, pictures, pairs))
            sources.append(Source(source.name, pictures, source.weight))
        return sources

    def unlabelled(self, spec: Any, where: str) -> Pictures | None:
        """Read pictures of the stream with ``load_size`` as shorter side; None on a problem."""
        size = self.data.load_size or self.data.image_size
        pictures: Pictures | None = None
        with collecting(self.problems):
            known = self._read(spec, size, labelled=False, where=where)
            pictures = self._chosen(spec, known, where)
        return pictures

    def labelled(
        self, spec: Any, where: str, *, order: random.Random | None = None, most: int | None = None
    ) -> list[Picture]:
        """Read and decode pictures with their annotations; empty on a problem.

        ``order`` shuffles them, and only the first ``most`` usable ones are decoded: a feedback set
        may be a few of a million pictures."""
        size = spec.size or (self.data.image_size, self.data.image_size)
        pictures: list[Picture] = []
        with collecting(self.problems):
            chosen = self._chosen(spec, self._read(spec, size, labelled=True, where=where), where)
            some = chosen if isinstance(chosen, Subset) else Subset(chosen, range(len(chosen)))
            places = some.places if order is None else order.sample(some.places, len(some))
            if isinstance(some.pictures, Folder):
                pictures = self._decoded(some.pictures, places, most, where)
            else:
                pictures = [some.pictures[place] for place in places[:most]]
        if isinstance(spec, NyuV2Pictures) and spec.eigen_crop:
            pictures = [
                replace(p, depth=p.depth * readers.eigen_crop(p.depth))
                for p in pictures
                if p.depth is not None
            ]
        if any(picture.depth is not None for picture in pictures):
            stated = isinstance(spec, LabelledPictures)
            self._depth_ranges.append(spec.depth_metres if stated else NYU_DEPTH_METRES)
        categories = (1 + p.category for p in pictures if p.category is not None)
        self.categories = max([self.categories, *categories])
        return pictures

    def _decoded(
        self, folder: Folder, places: Sequence[int], most: int | None, where: str
    ) -> list[Picture]:
        """Decode pictures into bounded memory; bad ones are treated as ``data.on_bad_row`` says."""
        store, count = PictureStore(self.data.memory_gib * GIB), 0
        for place in phase(f"decoding {where}", places, min(len(places), most or len(places))):
            if count == most:
                break
            try:
                store.add(folder.identified(place))
                count += 1
            except UserError as bad:
                if self.data.on_bad_row == "stop":
                    raise
                self.skipped += [each for each in bad.problems if each not in self.skipped]
        return store.pictures()

    def retrieval_set(self, spec: RetrievalSection) -> RetrievalSet | None:
        """Read a retrieval set, whose pictures are decoded when scored; None on a problem."""
        truth, images = (self.data.root.expanduser() / at for at in (spec.truth, spec.images))
        searched: RetrievalSet | None = None
        with collecting(self.problems):
            searched = read_retrieval(truth, images, reading=self._reading(spec.size))
        return searched

    def _chosen(self, spec: PictureSet, pictures: Pictures, where: str) -> Pictures:
        places = range(len(pictures))[spec.skip :][: spec.count]
        if not places:
            message, most = "no picture of the set is left; skip fewer", len(pictures) - 1
            raise user_error(f"{where}.skip", message, value=spec.skip, accepted=f"0 to {most}")
        if spec.count is not None and len(places) < spec.count:
            message = f"there are no more than {len(places)}, all of which are used"
            fewer = Problem(f"{where}.count", str(spec.count), f"1 to {len(places)}", message)
            self.warnings += [] if fewer in self.warnings else [fewer]
        return pictures if len(places) == len(pictures) else Subset(pictures, places)

    def _read(self, spec: Any, size: Any, *, labelled: bool, where: str) -> Pictures:
        spec_key = spec.model_dump_json(exclude={"skip", "count", "size", "eigen_crop"})
        key = f"{spec_key} {size} {labelled}"
        if isinstance(spec, ScenePictures):
            side = size if isinstance(size, int) else size[0]
            self._has_classes(len(scenes.CLASSES), where, labelled)
            count = spec.skip + spec.count
            return scenes.Scenes(spec.split, count, side, spec.seed, labelled=labelled)
        if isinstance(spec, LabelledPictures):
            self._has_classes(spec.class_count, where, labelled)
        if isinstance(spec, Ade20kPictures):
            self._has_classes(ADE20K_CLASSES, where, labelled)
        if key not in self._known:
            self._known[key], skipped, unread = self._from_files(spec, size, labelled, where)
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

    def _from_files(
        self, spec: Any, size: Any, labelled: bool, where: str
    ) -> readers.FolderContents:
        root, skip, reading = self.data.root.expanduser(), self.data.on_bad_row, self._reading(size)
        if isinstance(spec, LabelledPictures):
            code = _label_code(spec) if labelled else None
            reading = replace(reading, code=code, depth_metres=spec.depth_metres)
        if isinstance(spec, TablePictures | TarPictures):
            samples = self._samples(spec, labelled, where)
            return readers.read_packed(
                where, samples, reading=reading, on_bad_row=skip, check=spec.check
            )
        path = root / (spec.images if isinstance(spec, FolderPictures) else spec.path).expanduser()
        if isinstance(spec, ImageNetPictures):
            if labelled and not self._category_names:
                self._category_names = readers.category_names(path)
            names = self._category_names if labelled else ()
            return readers.read_categories(
                path, names, reading=reading, on_bad_row=skip, check=spec.check
            )
        if isinstance(spec, FolderPictures):
            maps = [None if f is None else root / f.expanduser() for f in (spec.labels, spec.depth)]
            apart = [each for each in maps if each is not None and each != path]
            return readers.read_folder(
                path,
                *(maps if labelled else ()),
                reading=reading,
                on_bad_row=skip,
                apart_from=apart,
                label_suffix=spec.label_suffix,
            )
        if not labelled:
            ade20k = isinstance(spec, Ade20kPictures)
            images = path / "images" / spec.split if ade20k else path / spec.split / "rgb"
            return readers.read_folder(images, reading=reading, on_bad_row=skip)
        kind = readers.read_ade20k if isinstance(spec, Ade20kPictures) else readers.read_nyuv2
        return kind(path, spec.split, reading=reading, on_bad_row=skip)

    def _samples(
        self, spec: TablePictures | TarPictures, labelled: bool, where: str
    ) -> Iterator[Files | Problem]:
        pattern, parts = under(self.data.root, spec.path), containers.Parts(spec.image)
        if labelled:
            parts = containers.Parts(spec.image, spec.labels, spec.depth, spec.category)
        if isinstance(spec, TablePictures):
            return containers.table_samples(pattern, spec.kind, parts, where)
        return containers.tar_samples(pattern, parts, where, self._tars)

    def _has_classes(self, classes: int | None, where: str, labelled: bool) -> None:
        if not labelled or classes is None:
            return
        if self.classes not in (None, classes):
            message = "all label maps of a recipe have the same classes, and these have others"
            shown, accepted = f"{classes} classes", f"{self.classes} classes"
            raise user_error(where, message, value=shown, accepted=accepted)
        self.classes = classes


def _label_code(spec: LabelledPictures) -> LabelCode | None:
    if spec.class_count is None:
        return None
    if spec.label_colours is not None:
        return LabelCode.painted(spec.label_colours, spec.other_labels)
    return LabelCode(
        spec.class_count,
        spec.void,
        spec.first_class,
        None if spec.label_values is None else tuple(spec.label_values),
        None if spec.label_map is None else tuple(spec.label_map.items()),
        others=spec.other_labels,
    )
