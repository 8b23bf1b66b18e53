"""Can an engine load it? Whether config, weights and tokenizer belong together, without loading any of them.

The publisher looks, and whoever asks for a version to be verified. A replica does not: it loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acemath_registry.errors import RejectReason
from acemath_registry.files import CONFIG_NAME
from acemath_registry.shapes import require_tensors
from acemath_registry.tensors import Tensor, read_json
from acemath_registry.vocabulary import require_ids


def require_loadable(directory: Path, tensors: Sequence[Tensor]) -> None:
    """Refuse a version that no engine can load.

    Args:
        directory: of the version, whose facts have been computed.
        tensors: of all its weight files.

    Raises:
        VerificationError: CONFIG_MALFORMED, WRONG_KIND, TENSOR_NAMES, TENSOR_SHAPES or TENSOR_DTYPES, naming the file.
        StorageError: a file can not be read.
    """
    config = read_json(directory / CONFIG_NAME, RejectReason.CONFIG_MALFORMED)
    require_tensors(config, tensors)
    require_ids(directory, config["vocab_size"])
