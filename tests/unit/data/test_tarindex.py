import gzip
import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest

from distbelief.data.tarindex import MAX_CLASS, TarIndex, build_index
from distbelief.errors import DataError

Member = tuple[str, bytes] | tarfile.TarInfo


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def index(content: bytes) -> TarIndex:
    return build_index(io.BytesIO(content), "x.tar")


def contents(content: bytes) -> list[tuple[str, str, bytes]]:
    """Name, class and bytes of each image, by the index."""
    found = index(content)
    begins = [0, *found.name_ends[:-1].tolist()]
    return [
        (
            found.names[begin:end].decode("utf-8", "surrogateescape"),
            found.classes[label],
            content[offset : offset + size],
        )
        for begin, end, label, offset, size in zip(
            begins,
            found.name_ends.tolist(),
            found.labels.tolist(),
            found.offsets.tolist(),
            found.sizes.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_of_webdataset(format: int) -> None:
    content = tar(
        ("a/001.jpg", b"one"),
        ("a/001.cls", b"7\n"),
        ("a/001.json", b"{}"),
        ("a/002.cls", b" 012"),
        ("a/002.seg.png", b"another thing"),
        ("a/002.PNG", b"two"),
        ("b/002.jpeg", b"three"),
        ("b/002.CLS", b"7"),
        ("alone.cls", b"5"),
        format=format,
    )
    assert contents(content) == [
        ("a/001.jpg", "7", b"one"),
        ("a/002.PNG", "12", b"two"),
        ("b/002.jpeg", "7", b"three"),
    ]
    assert index(content).numeric


def test_classes_may_be_names() -> None:
    content = tar(("1.jpg", b"1"), ("1.cls", "Großkatze".encode()), ("2.jpg", b""), ("2.cls", b"3"))
    assert contents(content) == [("1.jpg", "Großkatze", b"1"), ("2.jpg", "3", b"")]
    assert not index(content).numeric


def test_a_tree_of_class_folders() -> None:
    long = "x" * 150
    content = tar(
        special("./photos", tarfile.DIRTYPE),
        ("./photos/cat/my.first.photo.JPEG", b"1"),
        ("./photos/10/1.png", b"2"),
        (f"photos/cat/{long}/dog/{long}.webp", b"3"),
        ("photos/cat/notes.txt", b"no image"),
        ("photos/cat/._1.jpg", b"hidden"),
        (".trash/cat/1.jpg", b"hidden"),
    )
    assert contents(content) == [
        ("photos/cat/my.first.photo.JPEG", "cat", b"1"),
        ("photos/10/1.png", "10", b"2"),
        (f"photos/cat/{long}/dog/{long}.webp", "dog", b"3"),
    ]
    assert not index(content).numeric


def test_links_and_devices_are_skipped() -> None:
    content = tar(
        ("cat/1.jpg", b"1"),
        special("cat/2.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("cat/3.jpg", tarfile.LNKTYPE, "cat/1.jpg"),
        special("cat/4.jpg", tarfile.CHRTYPE),
        special("cat/5.jpg", tarfile.FIFOTYPE),
    )
    assert [name for name, _, _ in contents(content)] == ["cat/1.jpg"]


def test_the_later_of_two_members_of_one_name_counts() -> None:
    content = tar(("cat/1.jpg", b"old"), ("cat/2.jpg", b"2"), ("cat/1.jpg", b"new"))
    assert contents(content) == [("cat/2.jpg", "cat", b"2"), ("cat/1.jpg", "cat", b"new")]


def test_names_need_not_be_utf_8() -> None:
    content = tar(("k\udcff/1.jpg", b"1"), format=tarfile.GNU_FORMAT)
    assert contents(content) == [("k\udcff/1.jpg", "k\udcff", b"1")]


WHOLE = tar(("cat/1.jpg", b"1" * 700), ("cat/2.jpg", b"2" * 700))
# Two headers of a block, two files of two.
SECOND = 3 * 512


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a whole tar .*get or make it anew"),
        (b"no tar at all" * 100, "is not a whole tar"),
        (WHOLE[:300], "is not a whole tar"),
        (WHOLE[: SECOND + 600], "is not a whole tar"),
        (WHOLE[: 2 * SECOND], "is damaged or cut short at byte 3,072: get or make it anew"),
        (
            WHOLE[:SECOND] + b"x" * 512 + WHOLE[SECOND + 512 :],
            "is damaged or cut short at byte 1,5",
        ),
        (
            WHOLE[:SECOND] + bytes(512) + WHOLE[SECOND + 512 :],
            "is damaged or cut short at byte 1,5",
        ),
        (gzip.compress(WHOLE), "is compressed, .* unpack it with gunzip to a plain .tar"),
        (tar(), "has no images .*add some or remove the tar"),
        (tar(("cat/1.txt", b"")), "has no images"),
        (tar(("../cat/1.jpg", b"")), "has a member outside its folder, '../cat/1.jpg'"),
        (tar(("cat/../../1.jpg", b"")), "has a member outside its folder, 'cat/../../1.jpg'"),
        (tar(("/cat/1.jpg", b"")), "has a member outside its folder, '/cat/1.jpg'"),
        (tar(("cat/1.jpg", b""), ("../notes.txt", b"")), "has a member outside its folder"),
        (tar(("1.jpg", b"")), "1.jpg has no class: put it into a folder .* or add 1.cls"),
        (tar(("1.jpg", b""), ("2.jpg", b""), ("1.cls", b"0")), "2.jpg has no class: add 2.cls"),
        (tar(("1.jpg", b""), ("1.cls", b" \n")), "1.cls holds no class"),
        (tar(("1.jpg", b""), ("1.cls", b"\xff")), "1.cls holds no class"),
        (tar(("1.jpg", b""), ("1.cls", b"x" * 2000)), "1.cls holds no class"),
        (tar(("1.jpg", b""), ("1.cls", b"-1")), "has the class -1: an index must be in 0 to 1,000"),
        (tar(("1.jpg", b""), ("1.cls", b"1000001")), "has the class 1000001: an index must be in"),
        (tar(("1.jpg", b""), ("1.cls", b"9" * 900)), "an index must be in 0 to 1,000,000"),
        (tar(("1.jpg", b""), ("1.png", b""), ("1.cls", b"1")), "has two images of one sample, 1.j"),
        (tar(("1.b.png", b""), ("1.cls", b"1")), "has no images KEY.jpg beside its .cls"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        index(content)
    assert caught.value.path == "x.tar"


def test_sparse_members_are_refused() -> None:
    info = tarfile.TarInfo("cat/1.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}
    with pytest.raises(DataError, match=r"stores 'cat/1.jpg' sparse"):
        index(tar(info))


def test_the_greatest_class() -> None:
    content = tar(("1.jpg", b""), ("1.cls", str(MAX_CLASS).encode()))
    assert index(content).classes == ("1000000",)


def test_an_index_survives_its_file() -> None:
    first = index(
        tar(("cat/1.jpg", b"1" * 700), ("k\udcff/2.jpg", b"2"), format=tarfile.GNU_FORMAT)
    )
    again = TarIndex.from_bytes(first.to_bytes("10 20"), "10 20")
    assert again is not None
    for name in ("offsets", "sizes", "labels", "name_ends"):
        ours, theirs = getattr(again, name), getattr(first, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    assert (again.classes, again.numeric, again.names) == (("cat", "k\udcff"), False, first.names)


def cut(content: bytes) -> bytes:
    return content[:-100]


def turned(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    return bytes(damaged)


@pytest.mark.parametrize(
    "damage", [cut, turned, lambda content: b"", lambda content: b"\x80\x04K\x01."]
)
def test_a_damaged_file_is_no_index(damage: Callable[[bytes], bytes]) -> None:
    assert TarIndex.from_bytes(damage(index(WHOLE).to_bytes("k")), "k") is None


def test_an_index_of_another_state_is_none() -> None:
    assert TarIndex.from_bytes(index(WHOLE).to_bytes("10 20"), "10 21") is None


def test_tarfile_keeps_no_members_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    real = tarfile.TarFile.next

    def spy(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        nonlocal most
        found = real(self)
        most = max(most, len(self.members))  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(tarfile.TarFile, "next", spy)
    found = index(tar(*[(f"cat/{i}.jpg", b"") for i in range(50)]))
    assert len(found.offsets) == 50
    assert most == 1
    assert np.diff(found.offsets).tolist() == [512] * 49
