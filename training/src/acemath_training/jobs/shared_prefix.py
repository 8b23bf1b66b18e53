"""The keys and values of a beginning that all rows share, computed once and read by every row."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import DynamicCache


def keys_and_values(backbone: Any, prefix: Tensor, rows: int) -> DynamicCache | None:
    """The cache of `prefix` [P] seen by `rows` rows (gradients flow through it), or None when it is empty."""
    if not len(prefix):
        return None
    cache = DynamicCache()
    backbone(input_ids=prefix[None], past_key_values=cache, use_cache=True)
    return DynamicCache(
        [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in cache.layers]
    )


def inner(model: nn.Module) -> Any:
    """The `…ForCausalLM` or `…ForSequenceClassification` inside, without the wrapper that LoRA adds."""
    found = cast(Any, model)
    return found.get_base_model() if hasattr(found, "get_base_model") else found
