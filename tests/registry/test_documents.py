import pytest
from hypothesis import given
from hypothesis import strategies as st

from acemath_registry import RejectReason, VerificationError
from acemath_registry.documents import decode, encode

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_the_same_document_has_the_same_bytes(document: dict[str, object]) -> None:
    try:
        data = encode(document)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    assert decode(data, file="x", reason=RejectReason.MANIFEST_MALFORMED) == document
    assert encode(dict(reversed(document.items()))) == data


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000])
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        decode(data, file="x.json", reason=RejectReason.CONFIG_MALFORMED)
    assert caught.value.reason is RejectReason.CONFIG_MALFORMED
    assert caught.value.file == "x.json"


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"loss": float("nan")})
