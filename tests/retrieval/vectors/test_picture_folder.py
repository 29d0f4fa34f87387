"""Pictures without a path are kept once under their contents, small, whole, and only while something names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pictures import file_of, noise, plain
from PIL import Image

from processing_moon import ProductError
from product_data.feeds.feed_product import FeedProduct
from product_data.rows import ProductRow
from retrieval.embedding.embedding_options import EmbeddingOptions
from retrieval.embedding.job import embed_feed
from retrieval.search import SearchError, open_searcher
from retrieval.vectors.picture_folder import LARGEST_BYTES, SIDE, PictureFolder, key_of
from retrieval.vectors.vector_files import VectorFolder

PHOTO = file_of(noise(40, 40, 1))


def test_a_small_file_is_kept_as_it_is_and_written_once(tmp_path):
    folder = PictureFolder(tmp_path / "pictures")
    file = folder.add(PHOTO)
    assert (file.read_bytes(), file.suffix, file.is_absolute()) == (PHOTO, ".png", True)
    os.utime(file, (1, 1))
    assert folder.add(PHOTO) == file
    assert file.stat().st_mtime == 1
    assert folder.find(str(file)) == folder.find(f"/moved/{file.name}") == file
    for other in (f"https://example.org/{file.name}", "/moved/other.png", f"/moved/{'0' * 32}.png", ""):
        assert folder.find(other) is None


def test_owners_have_files_of_their_own(tmp_path):
    folder = PictureFolder(tmp_path)
    assert len({folder.add(PHOTO), folder.add(PHOTO, owner="a"), folder.add(PHOTO, owner="b")}) == 3


@pytest.mark.parametrize("kind", ["large", "BMP", "image"])
def test_other_pictures_become_small_jpeg_files(tmp_path, kind):
    large = noise(1600, 800, 2)
    assert len(file_of(large)) > LARGEST_BYTES
    picture = {"large": file_of(large), "BMP": file_of(plain("red", 1600, 800), "BMP"), "image": large}[kind]
    file = PictureFolder(tmp_path).add(picture)
    with Image.open(file) as kept:
        assert (kept.format, kept.size) == ("JPEG", (SIDE, SIDE // 2))


def test_an_unreadable_picture_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ProductError, match="not an image"):
        PictureFolder(tmp_path).add(b"not a picture")
    assert list(tmp_path.iterdir()) == []


def test_what_nothing_names_is_removed_and_so_is_a_file_that_was_not_written_whole(tmp_path):
    folder = PictureFolder(tmp_path)
    kept, other = folder.add(PHOTO), folder.add(file_of(plain("red")))
    (tmp_path / f"{other.name}.partial").write_bytes(b"half")
    assert folder.keep_only({key_of(kept)}) == 2
    assert list(tmp_path.iterdir()) == [kept]


# ---------------------------------------------------------------------------------------------------------------------
# The embedding job
# ---------------------------------------------------------------------------------------------------------------------
def product(number: int, *pictures: object) -> FeedProduct:
    return FeedProduct(ProductRow(f"p{number}", f"red shoe {number}", images=pictures))


def test_the_job_shows_the_first_picture_of_a_feed_of_bytes_and_removes_what_left_the_feed(tmp_path, tiny_moon):
    output, options = tmp_path / "vectors", EmbeddingOptions(str(tiny_moon()))
    path = tmp_path / "own.png"
    path.write_bytes(PHOTO)
    blue, green = file_of(plain("blue")), file_of(plain("green"))
    feed = [product(0, blue, green), product(1, blue), product(2, str(path)), product(3, noise(32, 32, 9)), product(4)]
    feed.append(product(5, b"not a picture"))
    embed_feed(feed, output, options, report=lambda _: None)
    shown = {one.product_id: one.images for one in VectorFolder(output).products()}
    assert shown["p0"] == shown["p1"]
    assert [Path(shown["p0"][0]).read_bytes(), shown["p2"], shown["p4"], shown["p5"]] == [blue, (str(path),), (), ()]
    assert Image.open(shown["p3"][0]).size == (32, 32)
    assert len(list((output / "pictures").iterdir())) == 2

    again = embed_feed(feed, output, options, report=lambda _: None)
    assert (again.kept, again.updated) == (5, 0)
    (output / "pictures" / f"{'0' * 32}.png").write_bytes(PHOTO)  # of a job that was killed
    feed = [product(0, green), *feed[1:3]]
    embed_feed(feed, output, options, report=lambda _: None)
    shown = {one.product_id: one.images for one in VectorFolder(output).products()}
    assert sorted((output / "pictures").iterdir()) == sorted({Path(shown[one][0]) for one in ("p0", "p1")})


def test_a_job_that_stops_keeps_the_pictures_of_the_state_before_it(tmp_path, tiny_moon, monkeypatch):
    output, options = tmp_path / "vectors", EmbeddingOptions(str(tiny_moon()))
    embed_feed([product(0, PHOTO)], output, options, report=lambda _: None)
    monkeypatch.setattr("retrieval.embedding.job.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed_feed([product(0, file_of(plain("blue")))], output, options, report=lambda _: None)
    (before,) = VectorFolder(output).products()
    assert Path(before.images[0]).read_bytes() == PHOTO


def test_paths_hold_in_every_working_folder_and_a_moved_model_is_named(tmp_path, tiny_moon, monkeypatch):
    model = tmp_path / "model"
    model.symlink_to(tiny_moon())
    (tmp_path / "own.png").write_bytes(PHOTO)
    monkeypatch.chdir(tmp_path)
    embed_feed([product(0, "own.png")], "vectors", EmbeddingOptions("model"), report=lambda _: None)
    monkeypatch.chdir("/")
    folder = VectorFolder(tmp_path / "vectors")
    assert folder.embedding.model == str(tiny_moon().resolve())
    assert [one.images for one in folder.products()] == [(str(tmp_path / "own.png"),)]
    with open_searcher(folder.path, device="cpu") as searcher:
        assert searcher.search("red shoe").hits
    text = folder.complete_file.read_text(encoding="utf-8").replace(folder.embedding.model, "/gone/model")
    folder.complete_file.write_text(text, encoding="utf-8")
    with pytest.raises(SearchError, match="was made with the model '/gone/model', which is not here .*--model"):
        next(open_searcher(folder.path).gen)
