"""What SRC means: the images it names, in which order, under which keys, in which shards."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_material import encoded, write_folder, write_parquet, write_tar

from saccade.accel.batch.sources import Item, Source, find_source
from saccade.accel.batch.storage import expand_braces
from saccade.errors import ImageError, UsageError


def all_items(source: Source) -> list[Item]:
    return list(chain.from_iterable(source.items(shard) for shard in source.shards))


def number_of(item: Item) -> int:
    """Which of the known images it is, by its bytes."""
    return next(number for number in range(60) if encoded(number) == item.read())


def test_a_folder_is_its_images_with_those_of_its_folders_in_shards_of_a_size(folder: Path) -> None:
    source = find_source(str(folder), shard_size=10)
    items = all_items(source)
    expected = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert sorted(item.key for item in items) == expected
    assert [(shard.number, shard.images) for shard in source.shards] == [(0, 10), (1, 10), (2, 3)]
    assert [item.shard for item in items] == [0] * 10 + [1] * 10 + [2] * 3
    for item in items:
        assert item.read() == (folder / item.key).read_bytes()
    again = all_items(find_source(str(folder) + "/", shard_size=10))
    assert [item.key for item in again] == [item.key for item in items]


def test_keys_of_a_pattern_begin_where_it_is_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {item.key for item in all_items(find_source(f"{folder}/00*.png"))} == {
        path.name for path in folder.glob("00*.png")
    }
    monkeypatch.chdir(folder)
    keys = {item.key for item in all_items(find_source("**/*.png"))}
    assert keys == {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    (only,) = all_items(find_source("0001.png"))
    assert (only.key, only.read()) == ("0001.png", encoded(1))


def test_a_limit_takes_the_first(folder: Path, tmp_path: Path) -> None:
    whole = [item.key for item in all_items(find_source(str(folder)))]
    assert [item.key for item in all_items(find_source(str(folder), limit=5, shard_size=2))] == whole[:5]
    for count in range(2):
        write_tar(tmp_path / f"{count}.tar", range(count * 4, count * 4 + 4))
    source = find_source(f"{tmp_path}/{{0..1}}.tar", limit=6)
    assert [number_of(item) for item in all_items(source)] == list(range(6))
    assert [shard.images for shard in source.shards] == [4, 2]
    write_parquet(tmp_path / "t.parquet", range(20))
    items = all_items(find_source(str(tmp_path / "t.parquet"), limit=9, shard_size=4))
    assert [number_of(item) for item in items] == list(range(9))


@pytest.mark.parametrize("compression", ["", "gz"])
def test_tar_files_are_shards_whose_members_keep_their_webdataset_keys(tmp_path: Path, compression: str) -> None:
    ending = ".tar.gz" if compression else ".tar"
    for count in range(3):
        write_tar(tmp_path / f"s-{count:03d}{ending}", range(count * 5, count * 5 + 5), compression=compression)
    source = find_source(f"{tmp_path}/s-{{000..002}}{ending}")
    items = all_items(source)
    assert [number_of(item) for item in items] == list(range(15))
    assert [item.id for item in items] == [f"{number:04d}" for number in range(15)]
    assert [item.key for item in items][5] == f"s-001{ending}/0005.png"
    assert [item.shard for item in items] == [0] * 5 + [1] * 5 + [2] * 5
    for shard in source.shards:
        assert sum(item.weight for item in source.items(shard)) <= shard.weight
    assert [item.key for item in all_items(find_source(str(tmp_path)))] == [item.key for item in items]


def test_members_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, number in (("x.png", 1), ("x.png", 2), ("./x.png#2", 3), ("x.png", 4), ("d/x.tar.png", 5)):
            member = tarfile.TarInfo(name if name.endswith(".png") else "x.png#2.png")
            member.size = len(encoded(number))
            archive.addfile(member, io.BytesIO(encoded(number)))
    items = all_items(find_source(str(tmp_path / "a.tar")))
    assert len({item.key for item in items}) == 5
    assert [number_of(item) for item in items] == [1, 2, 3, 4, 5]
    assert items[4].id == "d/x"


def test_a_damaged_tar_file_gives_what_is_whole_and_one_item_that_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", range(8))
    path.write_bytes(path.read_bytes()[:9000])
    items = all_items(find_source(str(path)))
    good = items[:-1]
    assert [number_of(item) for item in good] == list(range(len(good)))
    assert 0 < len(good) < 8
    with pytest.raises(ImageError, match=f"damaged after {len(good)} images"):
        items[-1].read()


def damage(path: Path) -> str:
    """What the last item of a tar file says that cannot be read, or nothing where all can."""
    *good, last = all_items(find_source(str(path)))
    assert [number_of(item) for item in good] == list(range(len(good)))
    try:
        assert number_of(last) == len(good)
    except ImageError as error:
        return str(error)
    return ""


def test_a_tar_file_that_is_cut_anywhere_before_its_end_says_so(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", range(4)).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    assert damage(tmp_path / "a.tar") == ""
    for cut in range(0, end + 1, 512):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        assert "is damaged after" in damage(tmp_path / "a.tar"), cut
    for cut in (100, 512 + 100, end - 512 - 412, end + 100):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        assert "is damaged after" in damage(tmp_path / "a.tar"), cut
    (tmp_path / "a.tar").write_bytes(whole[: end + 512])
    assert damage(tmp_path / "a.tar") == "", "one block of zeros is an end"
    (tmp_path / "a.tar").write_bytes(whole + whole)
    assert "damaged after 4 images: something follows behind its end" in damage(tmp_path / "a.tar")


def test_a_header_with_a_wrong_bit_says_so(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", range(8)).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        offsets = [member.offset for member in archive]
    for offset in offsets[1:]:
        content = bytearray(whole)
        content[offset + 3] ^= 1
        (tmp_path / "a.tar").write_bytes(content)
        assert "is damaged after" in damage(tmp_path / "a.tar")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_checksum_of_compressed_data_that_does_not_fit_is_said(tmp_path: Path, compression: str) -> None:
    path = write_tar(tmp_path / f"a.tar.{compression}", range(4), compression=compression)
    assert damage(path) == ""
    whole = path.read_bytes()
    content = bytearray(whole)
    content[-6 if compression == "gz" else len(whole) // 2] ^= 1  # of gzip the CRC alone, which fits nothing then
    path.write_bytes(content)
    assert "is damaged after" in damage(path)
    path.write_bytes(whole[:-5])
    assert "is damaged after" in damage(path)


def test_links_to_images_in_tar_files_are_items_that_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("a.png", tarfile.REGTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "" if kind == tarfile.REGTYPE else "a.png"
            member.size = len(encoded(0)) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(encoded(0)))
    items = all_items(find_source(str(path)))
    assert [item.key for item in items] == ["a.tar/a.png", "a.tar/b.png", "a.tar/c.png"]
    assert number_of(items[0]) == 0
    for item in items[1:]:
        with pytest.raises(ImageError, match=rf"'{item.id}\.png' in the tar file .* is a link, which is not followed"):
            item.read()


@pytest.mark.parametrize("as_struct", [False, True], ids=["bytes", "struct"])
def test_rows_of_parquet_files_are_numbered_through_all_of_them(tmp_path: Path, as_struct: bool) -> None:
    write_parquet(tmp_path / "a.parquet", range(17), as_struct=as_struct)
    write_parquet(tmp_path / "b.parquet", range(17, 30), as_struct=as_struct)
    source = find_source(str(tmp_path), shard_size=8, id_column="url")
    assert [shard.images for shard in source.shards] == [8, 8, 8, 6]
    items = all_items(source)
    assert [number_of(item) for item in items] == list(range(30))
    assert [item.id for item in items] == [f"http://x/{number}" for number in range(30)]
    assert [items[16].key, items[17].key] == ["a.parquet#16", "b.parquet#0"]


def test_parquet_files_without_images_or_with_several_columns_of_bytes_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="no column of bytes, but a, b"):
        find_source(str(tmp_path / "none.parquet"))
    pq.write_table(pa.table({"left": [encoded(0)], "right": [encoded(1)]}), tmp_path / "two.parquet")
    with pytest.raises(UsageError, match="several columns of bytes \\(left, right\\); name the images' with --image"):
        find_source(str(tmp_path / "two.parquet"))
    (item,) = all_items(find_source(str(tmp_path / "two.parquet"), image_column="right"))
    assert number_of(item) == 1
    with pytest.raises(UsageError, match="has no column 'middle', but left, right"):
        find_source(str(tmp_path / "two.parquet"), image_column="middle")
    with pytest.raises(UsageError, match="holds int64, not encoded images"):
        find_source(str(tmp_path / "none.parquet"), image_column="a")
    write_parquet(tmp_path / "many-a.parquet", range(3))
    for images in ([{"path": "x"}], ["text"]):
        pq.write_table(pa.table({"image": images, "other": [b"x"]}), tmp_path / "many-b.parquet")
        with pytest.raises(UsageError, match=r"'image' of '.*many-b\.parquet' holds .*, not encoded images"):
            find_source(f"{tmp_path}/many-*.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not at all")
    with pytest.raises(ImageError, match=r"bad\.parquet' is not a Parquet file that can be read"):
        find_source(str(tmp_path / "bad.parquet"))


def test_rows_without_an_image_are_items_that_say_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(0), None, b"", encoded(3)]}), tmp_path / "a.parquet")
    items = all_items(find_source(str(tmp_path / "a.parquet")))
    assert [number_of(items[0]), number_of(items[3])] == [0, 3]
    for row in (1, 2):
        with pytest.raises(ImageError, match=f"row {row} of .* has no image"):
            items[row].read()


def test_what_fsspec_opens_gives_the_same_as_the_disk(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", range(4))
    write_tar(tmp_path / "a-1.tar", range(4, 8))
    write_parquet(tmp_path / "a.parquet", range(9))
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/photos", recursive=True)
    for name in ("a-0.tar", "a-1.tar", "a.parquet"):
        files.put(str(tmp_path / name), f"/bucket/{name}")
    for ours, theirs in (
        (f"{folder}", "memory://bucket/photos"),
        (f"{folder}/*.png", "memory://bucket/photos/*.png"),
        (f"{tmp_path}/a-{{0..1}}.tar", "memory://bucket/a-{0..1}.tar"),
        (f"{tmp_path}/*.tar", "memory://bucket/*.tar"),
        (f"{tmp_path}/a.parquet", "memory://bucket/a.parquet"),
    ):
        local, remote = find_source(ours, shard_size=6), find_source(theirs, shard_size=6)
        assert (local.remote, remote.remote) == (False, True)
        assert [(i.key, i.id, i.read()) for i in all_items(local)] == [
            (i.key, i.id, i.read()) for i in all_items(remote)
        ]
        assert local.fingerprint == remote.fingerprint
        assert local.shards == remote.shards
    with pytest.raises(ImageError, match="there is no file or folder 'memory://bucket/nothing'"):
        find_source("memory://bucket/nothing")
    with pytest.raises(UsageError, match="'nosuch://bucket' cannot be opened"):
        find_source("nosuch://bucket")


def test_the_fingerprint_changes_with_names_sizes_and_limit(folder: Path) -> None:
    first = find_source(str(folder)).fingerprint
    assert find_source(str(folder), shard_size=3).fingerprint == first
    assert find_source(str(folder), limit=5).fingerprint != first
    path = folder / "0001.png"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = find_source(str(folder)).fingerprint
    assert changed != first
    path.rename(folder / "0001a.png")
    assert find_source(str(folder)).fingerprint not in (first, changed)


def test_a_source_can_be_sent_to_another_process(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", range(4))
    write_parquet(tmp_path / "a.parquet", range(9))
    for spec in (folder, tmp_path / "a.tar", tmp_path / "a.parquet"):
        source = find_source(str(spec))
        copy: Source = pickle.loads(pickle.dumps(source))
        assert [item.read() for item in all_items(copy)] == [item.read() for item in all_items(source)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("plain.tar", ["plain.tar"]),
        ("{one}.tar", ["{one}.tar"]),
    ],
)
def test_braces_stand_for_several_paths(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'\{9\.\.3\}' is not a range"):
        expand_braces("a{9..3}.tar")


def test_sources_with_nothing_in_them_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="has no images, and no tar or Parquet files"):
        find_source(str(tmp_path / "empty"))
    with pytest.raises(ImageError, match="there is no file or folder"):
        find_source(str(tmp_path / "missing"))
    with pytest.raises(ImageError, match="no file matches"):
        find_source(f"{tmp_path}/*.tar")
    write_tar(tmp_path / "empty" / "a.tar", range(1))
    write_parquet(tmp_path / "empty" / "a.parquet", range(1))
    with pytest.raises(UsageError, match="choose with --kind tar or --kind parquet"):
        find_source(str(tmp_path / "empty"))
    assert find_source(str(tmp_path / "empty"), kind="parquet").kind == "parquet"
    with pytest.raises(UsageError, match=r"files of several kinds \(parquet, tar\)"):
        find_source(f"{tmp_path}/empty/a.*")


def test_a_folder_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def refusing(path: bytes) -> Any:
        if b"deeper" in path:
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)  # root, whom tests may run as, reads everything
    with pytest.raises(ImageError, match="deeper/' cannot be read: Permission denied"):
        find_source(str(folder))


def test_names_that_are_not_utf8_have_keys_and_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", 1)
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as stream:
        stream.write(encoded(5))
    items = all_items(find_source(str(folder)))
    assert [number_of(item) for item in items] == [5, 0]
    assert items[0].key == r"\xff.png"


def test_no_two_names_are_one_key(tmp_path: Path) -> None:
    names = [b"\xff.png", rb"\xff.png", rb"\\xff.png", b"\\\xff.png", rb"\udcff.png", rb"a\b.png", b"\xc3\xa9.png"]
    for number, name in enumerate(names):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as stream:
            stream.write(encoded(number))
    keys = {names[number_of(item)]: item.key for item in all_items(find_source(str(tmp_path)))}
    assert len(set(keys.values())) == len(keys) == len(names)
    assert keys[rb"a\b.png"] == r"a\b.png", "a backslash is as good as any character"
    assert keys[b"\xc3\xa9.png"] == "é.png"


def test_links_that_lead_nowhere_and_what_is_no_file_are_images_that_cannot_be_read(folder: Path) -> None:
    (folder / "a-loop.png").symlink_to("a-loop.png")
    (folder / "b-nowhere.png").symlink_to("missing.png")
    (folder / "c-good.png").symlink_to("0001.png")
    (folder / "d-folder.png").symlink_to("deeper")
    os.mkfifo(folder / "e-pipe.png")
    with (folder / "f-large.png").open("wb") as stream:
        stream.truncate(900 << 30)  # without anything in it
    items = {item.key: item for item in all_items(find_source(str(folder)))}
    assert len(items) == 23 + 5
    assert number_of(items["c-good.png"]) == 1
    for key, said in (
        ("a-loop.png", "Too many levels of symbolic links"),
        ("b-nowhere.png", "No such file"),
        ("e-pipe.png", "it is not a regular file"),
        ("f-large.png", "it has 966,367,641,600 bytes, and images at most 1,073,741,824"),
    ):
        with pytest.raises(ImageError, match=f"{key}' cannot be read: {said}"):
            items[key].read()
    with pytest.raises(ImageError, match="is neither a file nor a folder"):
        find_source(str(folder / "e-pipe.png"))


def test_folders_may_be_nested_deeper_than_the_stack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for _ in range(1050):
        os.mkdir("d")
        os.chdir("d")
    Path("deep.png").write_bytes(encoded(30))
    try:
        keys = [item.key for item in all_items(find_source(str(folder)))]
    finally:
        for _ in range(1050):  # which shutil, and with it pytest, could not remove
            for path in Path().iterdir():
                path.rmdir() if path.is_dir() else path.unlink()
            os.chdir("..")
        os.rmdir("d")
    assert "d/" * 1050 + "deep.png" in keys
    assert len(keys) == 24
