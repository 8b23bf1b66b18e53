import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry import RejectReason, VerificationError
from acemath_registry.tensors import digest_tensors, dominant_dtype, read_header, read_tensors


def file_with(tmp_path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data", "length", "reason"),
    [
        (b"", b"", 0, RejectReason.HEADER_MALFORMED),
        (b"{}", b"", None, RejectReason.HEADER_MALFORMED),
        (b"{}", b"", 1 << 62, RejectReason.HEADER_MALFORMED),
        (b"{}", b"", 3, RejectReason.TRUNCATED),
        (b"not json", b"", None, RejectReason.HEADER_MALFORMED),
        (b'{"a": 1, "a": 2}', b"", None, RejectReason.HEADER_MALFORMED),
        ([], b"", None, RejectReason.HEADER_MALFORMED),
        ({"a": 1}, b"", None, RejectReason.HEADER_MALFORMED),
        ({"a": []}, b"", None, RejectReason.HEADER_MALFORMED),
        ({"a": {}}, b"", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry("F31")}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry([])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(shape="1")}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(shape=[-1])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(shape=[True])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(shape=[1.0])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(offsets=[0])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(offsets=["0", "4"])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(offsets=[4, 0])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(shape=[2])}, b"1234", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry("F4", [1], [0, 0])}, b"", None, RejectReason.HEADER_MALFORMED),
        ({"a": entry(offsets=[4, 8])}, b"12345678", None, RejectReason.TENSOR_OVERLAP),
        ({"a": entry(), "b": entry(offsets=[2, 6])}, b"123456", None, RejectReason.TENSOR_OVERLAP),
        ({"a": entry(), "b": entry(offsets=[0, 4])}, b"1234", None, RejectReason.TENSOR_OVERLAP),
        ({"a": entry(), "b": entry(offsets=[5, 9])}, b"123456789", None, RejectReason.TENSOR_OVERLAP),
        ({"a": entry()}, b"123", None, RejectReason.TRUNCATED),
        ({"a": entry()}, b"12345", None, RejectReason.HEADER_MALFORMED),
    ],
)
def test_bad_headers(tmp_path: Path, header: Any, data: bytes, length: int | None, reason: RejectReason) -> None:
    with pytest.raises(VerificationError) as caught:
        read_header(file_with(tmp_path, header, data, length=length))
    assert (caught.value.reason, caught.value.file) == (reason, "model.safetensors")


def test_shorter_than_the_length_field(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x02\x00")
    with pytest.raises(VerificationError) as caught:
        read_header(path)
    assert caught.value.reason is RejectReason.TRUNCATED


def test_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    arrays = {"b": numpy.zeros((2, 3), "float32"), "a": numpy.ones(5, "int8"), "s": numpy.array(1, "float32")}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read_tensors(tmp_path, ["model.safetensors"])
    assert {(t.name, t.dtype, t.shape) for t in tensors} == {("a", "I8", (5,)), ("b", "F32", (2, 3)), ("s", "F32", ())}
    assert dominant_dtype(tensors) == "float32"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_never_a_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(VerificationError):
        read_header(path)


def test_digests_tell_names_shapes_and_dtypes_apart(tmp_path: Path) -> None:
    def digests(header: dict[str, Any]) -> Any:
        return digest_tensors(read_header(file_with(tmp_path, header, b"12345678")))

    base = digests({"a": entry("F32", [2], [0, 8])})
    renamed = digests({"b": entry("F32", [2], [0, 8])})
    reshaped = digests({"a": entry("F32", [1, 2], [0, 8])})
    retyped = digests({"a": entry("I32", [2], [0, 8])})
    assert renamed.names_sha256 != base.names_sha256
    assert (reshaped.names_sha256, reshaped.dtypes_sha256) == (base.names_sha256, base.dtypes_sha256)
    assert reshaped.shapes_sha256 != base.shapes_sha256
    assert (retyped.names_sha256, retyped.shapes_sha256) == (base.names_sha256, base.shapes_sha256)
    assert retyped.dtypes_sha256 != base.dtypes_sha256


def test_shards_and_index(make_checkpoint: Callable[..., Path]) -> None:
    one, many = make_checkpoint(), make_checkpoint(shards=True)
    in_one = digest_tensors(read_tensors(one, [path.name for path in one.iterdir()]))
    in_many = digest_tensors(read_tensors(many, [path.name for path in many.iterdir()]))
    assert in_one == in_many


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def edit_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((directory / INDEX).read_text())
    change(document)
    (directory / INDEX).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "reason", "file"),
    [
        (lambda d: (d / SECOND).unlink(), RejectReason.FILE_MISSING, SECOND),
        (lambda d: (d / INDEX).unlink(), RejectReason.FILE_MISSING, INDEX),
        (lambda d: [(d / n).unlink() for n in (FIRST, SECOND)], RejectReason.FILE_MISSING, "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), RejectReason.INDEX_MISMATCH, FIRST),
        (lambda d: (d / SECOND).write_bytes((d / FIRST).read_bytes()), RejectReason.INDEX_MISMATCH, SECOND),
        (
            lambda d: (d / "model-00003-of-00003.safetensors").write_bytes((d / FIRST).read_bytes()),
            RejectReason.INDEX_MISMATCH,
            "model-00003-of-00003.safetensors",
        ),
        (lambda d: edit_index(d, lambda i: i.pop("weight_map")), RejectReason.INDEX_MISMATCH, INDEX),
        (lambda d: edit_index(d, lambda i: i["weight_map"].update(x=["y"])), RejectReason.INDEX_MISMATCH, INDEX),
        (lambda d: edit_index(d, lambda i: i["weight_map"].update(x=FIRST)), RejectReason.INDEX_MISMATCH, INDEX),
        (lambda d: edit_index(d, lambda i: i["weight_map"].popitem()), RejectReason.INDEX_MISMATCH, INDEX),
        (lambda d: edit_index(d, lambda i: i["weight_map"].update(x="../up")), RejectReason.PATH_TRAVERSAL, INDEX),
    ],
)
def test_shards_that_do_not_fit(
    make_checkpoint: Callable[..., Path], damage: Callable[[Path], object], reason: RejectReason, file: str
) -> None:
    directory = make_checkpoint(shards=True)
    damage(directory)
    with pytest.raises(VerificationError) as caught:
        read_tensors(directory, [path.name for path in directory.iterdir()])
    assert (caught.value.reason, caught.value.file) == (reason, file)
