"""infinity's `AsyncEmbeddingEngine.rerank`, in the environment that `infinity_env.sh` makes.

It takes pairs of texts, not ids, and strips both: the query is the rendered conversation up to the candidate, the
document the candidate with the template's end, so the newline behind `assistant` and the last one are lost, and the
score is read at another token. Speed is compared on all but the same tokens; the difference of the scores is reported
as it is. Nothing of ours is imported here but the groups.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]  # in its own environment
from transformers import AutoTokenizer

from bench.reward.groups import Group, Scores
from bench.reward.worker import Options

CALL_SECONDS = 300
"""When its forward pass fails, a call to infinity never ends."""


class Infinity:
    """One engine on an event loop of its own.

    Args:
        checkpoint: its directory.
        batch: candidates of one forward pass.
        dtype: as infinity names it.
        device: `cpu` or `cuda`.
    """

    def __init__(self, checkpoint: Path, batch: int, dtype: str, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        directory = str(written_as_before(checkpoint, Path(self._folder.name)))
        arguments = EngineArgs(
            model_name_or_path=directory,
            engine="torch",
            device=device,
            dtype=dtype,
            batch_size=batch,
            bettertransformer=False,
            model_warmup=False,
            compile=False,
        )
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEmbeddingEngine.from_args(arguments)
        self._loop.run_until_complete(self._engine.astart())
        names = ("infinity_emb", "torch", "transformers", "sentence-transformers")
        self.facts: dict[str, Any] = {name: importlib.metadata.version(name) for name in names}
        self.facts |= {"dtype": dtype, "batch": batch, "device": device, "takes": "texts, stripped"}
        self._pairs: dict[tuple[int, ...], str] = {}

    def prepare(self, options: Options) -> None:
        """Nothing to do: an embedding of earlier calls is not kept without a vector cache."""

    def score(self, groups: Sequence[Group], options: Options) -> Scores:
        """Every group a call, all at once."""
        return self._loop.run_until_complete(asyncio.wait_for(self._score(groups), CALL_SECONDS))

    async def _score(self, groups: Sequence[Group]) -> Scores:
        return await asyncio.gather(*(self._group(group) for group in groups))

    async def _group(self, group: Group) -> list[float]:
        query, docs = self._text(group.prompt), [self._text(own) for own in group.candidates]
        ranked, _ = await self._engine.rerank(query=query, docs=docs, raw_scores=True)
        values = [0.0] * len(docs)
        for one in ranked:
            values[one.index] = one.relevance_score
        return values

    def _text(self, ids: tuple[int, ...]) -> str:
        """The text of ids, special tokens included; remembered, so that it is made outside the timed rounds."""
        if ids not in self._pairs:
            self._pairs[ids] = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return self._pairs[ids]

    def close(self) -> None:
        """Stop its threads."""
        self._loop.run_until_complete(self._engine.astop())
        self._folder.cleanup()


def written_as_before(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with config and tokenizer as transformers 4, which infinity needs, reads what 5 writes."""
    for path in checkpoint.resolve().iterdir():
        if path.name not in ("config.json", "tokenizer_config.json"):
            (folder / path.name).symlink_to(path)
    config = json.loads((checkpoint / "config.json").read_text())
    rope = config.pop("rope_parameters", None) or {}
    config |= {"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)), "rope_scaling": None}
    config["torch_dtype"] = config.pop("dtype", "bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    known = json.loads((checkpoint / "tokenizer_config.json").read_text())
    kept: dict[str, Any] = {name: value for name, value in known.items() if name.endswith("_token")}
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


def create(options: Options) -> Infinity:
    """See `bench.reward.worker`."""
    return Infinity(Path(options["checkpoint"]), options["batch"], options["dtype"], options["device"])
