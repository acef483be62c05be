"""Pictures in parquet, in folders of `save_to_disk` and in tars, as the libraries write them that
people make them with; whole and broken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from tests.vision.conftest import tiny_recipe
from vpretrain.system.errors import Problem, UserError
from vpretrain.vision import Vision
from vpretrain.vision.data import readers
from vpretrain.vision.data.files import Files, Folder
from vpretrain.vision.data.readers import read_packed

COUNT = 12


def noise(seed: int, *shape: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape, dtype=np.uint8)


PICTURES = [noise(at, 32, 32, 3) for at in range(COUNT)]
MAPS = [noise(100 + at, 32, 32, most=7) for at in range(COUNT)]


def encoded(values: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def data_set(count: int = COUNT) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "label": datasets.Value("int64")}
    )
    rows = {
        "image": [Image.fromarray(each) for each in PICTURES[:count]],
        "mask": [Image.fromarray(each) for each in MAPS[:count]],
        "label": [at % 3 for at in range(count)],
    }
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(rows, features=features)


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def samples(count: int = COUNT) -> list[tuple[str, bytes]]:
    return [
        member
        for at in range(count)
        for member in (
            (f"a/{at:04}.png", encoded(PICTURES[at])),
            (f"a/{at:04}.seg.png", encoded(MAPS[at])),
            (f"a/{at:04}.cls", str(at % 3).encode()),
            (f"a/{at:04}.json", b"{}"),
        )
    ]


def written(folder: Path, kind: str) -> str:
    """What a recipe says of the set, made in the folder."""
    if kind == "webdataset":
        tar(folder / "set-00.tar", samples()[:20])
        tar(folder / "set-01.tar.gz", samples()[20:], "w:gz")
        return "{kind: webdataset, path: 'set-0*', labels: seg.png, category: cls, classes: 7}"
    if kind == "arrow":
        data_set().save_to_disk(folder / "set", num_shards=2)
    else:
        data_set().to_parquet(folder / "set.parquet")
    path = "set" if kind == "arrow" else "set.parquet"
    return f"{{kind: {kind}, path: {path}, labels: mask, category: label, classes: 7}}"


def overrides(folder: Path, pictures: str) -> list[str]:
    tasks = "{segmentation: 1, classification: 1}"
    return [
        f"data.root={folder}",
        f"data.feedback.sets.0.pictures={pictures}",
        "data.feedback.sets.0.train=6",
        "data.feedback.sets.0.meta=6",
        f"data.feedback.tasks={tasks}",
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset"])
def test_stream_feedback_and_evaluation_read_what_was_saved(kind: str, tmp_path: Path) -> None:
    pictures = written(tmp_path, kind)
    recipe = tiny_recipe(
        *overrides(tmp_path, pictures),
        f"data.evaluation.train=[{pictures}]",
        "evaluate.probes=[segmentation, classification]",
        f"data.stream.0.pictures={pictures}",
        "data.stream.0.pictures.count=null",
    )
    sets = Vision().load(recipe).sets
    for at, picture in enumerate(sets.probed):
        assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), PICTURES[at])
        assert np.array_equal(picture.labels.numpy(), MAPS[at]) and picture.category == at % 3
    (source,) = sets.stream
    assert len(source.pictures) == len(sets.train) + len(sets.meta) == len(sets.probed) == COUNT
    assert isinstance(source.pictures, Folder), "decoded when they are drawn, and not before"
    assert source.pictures[3].labels is None
    names = {"parquet": "set.parquet:4", "arrow": "arrow:4", "webdataset": "set-00.tar:a/0003.png"}
    assert source.pictures[3].name.endswith(names[kind])


def test_an_evaluation_picture_in_a_tar_is_found_in_a_stream_of_parquet(tmp_path: Path) -> None:
    data_set().to_parquet(tmp_path / "set.parquet")
    held = "{kind: webdataset, path: held.tar, labels: seg.png, classes: 7}"
    tar(tmp_path / "held.tar", samples(6))
    options = ["data.stream.0.pictures={kind: parquet, path: set.parquet}"]
    options += [f"data.evaluation.test=[{held}]", "evaluate.probes=[segmentation]"]
    with pytest.raises(UserError, match=r"6 of these pictures are also in data\.evaluation\.test"):
        Vision().load(tiny_recipe(f"data.root={tmp_path}", *options))


def problems(folder: Path, pictures: str) -> str:
    with pytest.raises(UserError) as caught:
        Vision().load(tiny_recipe(*overrides(folder, pictures)))
    return str(caught.value)


TAR = "{kind: webdataset, path: set.tar, labels: seg.png, category: cls, classes: 7}"


@pytest.mark.parametrize(
    ("at", "member", "said"),
    [
        (4, ("a/0001.png", encoded(PICTURES[1])[:90]), "set.tar:a/0001.png: the image is cut off"),
        (5, ("a/0001.seg.png", encoded(PICTURES[1])), "set.tar:a/0001.seg.png: this is no label"),
        (5, ("a/0001.other", b""), "set.tar:a/0001: this sample has no member for labels"),
        (6, ("a/0001.cls", b"cat"), "set.tar:a/0001.cls: the category is no whole number"),
    ],
)
def test_a_bad_member_of_a_tar_is_named_or_left_out(
    at: int, member: tuple[str, bytes], said: str, tmp_path: Path
) -> None:
    members = samples(13 % COUNT + COUNT - 1)
    members[at] = member
    tar(tmp_path / "set.tar", members)
    assert said in problems(tmp_path, TAR)
    options = [*overrides(tmp_path, TAR), "data.feedback.sets.0.meta=5", "data.on_bad_row=skip"]
    sets = Vision().load(tiny_recipe(*options)).sets
    assert len(sets.train) + len(sets.meta) == 11 and len(sets.skipped) == 1


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_was_cut_off_is_named_with_the_last_member(ending: str, tmp_path: Path) -> None:
    path = tar(tmp_path / f"set.{ending}", samples(), "w:gz" if ending == "tar.gz" else "w")
    whole = path.read_bytes()
    after = " after its member a/00" if ending == "tar" else ""
    for cut in (len(whole) * 2 // 3, len(whole) // 3, 60 * 512):
        path.write_bytes(whole[:cut])
        shown = problems(tmp_path, TAR.replace("set.tar", f"set.{ending}"))
        assert f"set.{ending}: this tar cannot be read{after}" in shown
    path.write_bytes(b"no tar")
    assert "cannot be read" in problems(tmp_path, TAR.replace("set.tar", f"set.{ending}"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_there_may_be_more_tars_than_open_files(ending: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="a limit of open files is of Unix")
    count = 150
    for at in range(count):
        member = (f"{at:04}.png", encoded(noise(at, 32, 32, 3)))
        tar(tmp_path / f"{at:04}.{ending}", [member], "w:gz" if ending == "tar.gz" else "w")
    spec = f"{{kind: webdataset, path: '*.{ending}', check: false}}"
    recipe = tiny_recipe(f"data.root={tmp_path}", f"data.stream.0.pictures={spec}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "one").open("wb") as file:
        here = file.fileno()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (here + 100, hard))
        (source,) = Vision().load(recipe).sets.stream
        drawn = [source.pictures[at].pixels for at in (*range(0, count, 7), 0, count - 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(source.pictures) == count
    for at, pixels in zip((*range(0, count, 7), 0, count - 1), drawn, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), noise(at, 32, 32, 3))


def test_what_is_wrong_with_a_table_of_pictures_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def save(rows: list[dict[str, Any]]) -> None:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")

    keys = "{kind: parquet, path: set.parquet, labels: mask, category: label, classes: 7}"
    row = {"image": encoded(PICTURES[0]), "mask": {"bytes": encoded(MAPS[0]), "path": None}}
    save([{**row, "label": 0}, {**row, "label": -1}, {**row, "image": None, "label": 1}])
    shown = problems(tmp_path, keys)
    assert "set.parquet:2: the category in column 'label' is a number" in shown
    assert "set.parquet:3: column 'image' holds null, and no picture" in shown
    save([{**row, "label": 0, "mask": row["image"]}] * 2)
    assert "set.parquet:1 (mask): this is no label map" in problems(tmp_path, keys)
    assert "label maps need `classes`" in problems(tmp_path, keys.replace(", classes: 7", ""))
    save([{"picture": encoded(PICTURES[0])}])
    shown = problems(tmp_path, keys)
    assert "no column 'image'" in shown and "'picture'" in shown
    (tmp_path / "set.parquet").write_bytes((tmp_path / "set.parquet").read_bytes()[:-9])
    assert "cannot be read as a parquet file" in problems(tmp_path, keys)


def test_paths_in_a_table_lead_to_files_beside_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "img").mkdir()
    for at, values in enumerate(PICTURES):
        Image.fromarray(values).save(tmp_path / f"img/{at}.png")
    rows = [{"image": {"bytes": None, "path": f"img/{at}.png"}} for at in range(COUNT)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    stream = "data.stream.0.pictures={kind: parquet, path: set.parquet, check: false}"
    (source,) = Vision().load(tiny_recipe(f"data.root={tmp_path}", stream)).sets.stream
    assert np.array_equal(source.pictures[5].pixels.permute(1, 2, 0).numpy(), PICTURES[5])


def test_tars_of_webdataset_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset writes the tar read here")
    with webdataset.TarWriter(str(tmp_path / "set.tar")) as sink:
        for at in range(COUNT):
            sample = {"png": encoded(PICTURES[at]), "seg.png": encoded(MAPS[at]), "cls": at % 3}
            sink.write({"__key__": f"{at:04}", **sample})
    sets = Vision().load(tiny_recipe(*overrides(tmp_path, TAR))).sets
    assert len(sets.train) + len(sets.meta) == COUNT


@pytest.mark.parametrize("bad", ["stop", "skip"])
def test_without_a_check_no_picture_is_decoded_for_one_that_is_bad(
    bad: Literal["stop", "skip"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_read", lambda *given, **options: pytest.fail("decoded"))
    samples = [Files(Path("a.png")), Problem("set.tar:b", "", "a category", "there is none")]
    if bad == "skip":
        read = read_packed("set.tar", samples, on_bad_row=bad, check=False)
        assert len(read.pictures) == len(read.skipped) == 1
        return
    with pytest.raises(UserError, match=r"1 of 2 pictures of set\.tar cannot be used"):
        read_packed("set.tar", samples, on_bad_row=bad, check=False)
