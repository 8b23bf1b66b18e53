"""What training must know of a checkpoint's kind, without loading it."""

import json
from pathlib import Path

from acemath_training.errors import PublishError

END_OF_TURN = "<|im_end|>"
LANGUAGE = "ForCausalLM"
"""How the architectures end that write text."""


def language_model(base: Path) -> str:
    """The architecture of a checkpoint that writes text, which an adapter with a score head needs as its base.

    Raises:
        PublishError: it does something else.
    """
    architecture = str(json.loads((base / "config.json").read_text("utf-8"))["architectures"][0])
    if not architecture.endswith(LANGUAGE):
        raise PublishError(f"{base} is a {architecture}; a reward model's adapter is trained on a …{LANGUAGE}")
    return architecture
