"""Drawings beside results are on the page, within the file."""

from base64 import b64encode

from vpretrain.report.pictures import pictures


def test_every_png_is_within_the_page_under_its_name(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/b<.png").write_bytes(b"two")
    (tmp_path / "pictures/a.png").write_bytes(b"one")
    (tmp_path / "pictures/a.txt").write_text("no")
    page = str(pictures([tmp_path]))
    assert page.count("<img ") == 2 and "</img>" not in page
    first, second = (page.index(b64encode(data).decode()) for data in (b"one", b"two"))
    assert first < second and "b&lt;" in page and "b<" not in page


def test_without_drawings_there_is_no_part(tmp_path):
    assert pictures([tmp_path]) is None
