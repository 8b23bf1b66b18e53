"""A release that gateways can route by without any model behind it: bytes as tokens, ChatML, a few weights.

`python tests/doubles/small_release.py REGISTRY` publishes and promotes it, and prints its names as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONTEXT_LENGTH = 262_144
"""Room for the longest problem that a gateway takes, four bytes a character, and the longest answer."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def publish(root: Path, work: Path) -> dict[str, str]:
    """Publish both versions and promote them on `default`; `work` is an empty folder for what is to be published.

    Returns:
        The ids under `release`, `policy` and `reward`.
    """
    from registry.tiny import METADATA, write_checkpoint

    from acemath_registry import Registry

    registry, refs = Registry(root), []
    for kind in ("policy", "reward"):
        source = write_checkpoint(work / kind, kind)
        _with_bytes_as_tokens(source)
        refs.append(registry.publish(source, name=f"small-{kind}", kind=kind, metadata=METADATA))
    release = registry.create_release(*refs)
    registry.promote("default", release.id, expected_generation=None, by="tests")
    return {"release": release.id, "policy": str(refs[0]), "reward": str(refs[1])}


def _with_bytes_as_tokens(source: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    config = json.loads((source / "config.json").read_text())
    config |= {"max_position_embeddings": CONTEXT_LENGTH, "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (source / "chat_template.jinja").write_text(TEMPLATE)


def main(root: Path) -> None:
    import tempfile

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as work:
        sys.stdout.write(json.dumps(publish(root, Path(work))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
