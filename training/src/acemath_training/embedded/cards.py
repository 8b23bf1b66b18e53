"""The committed adapters and what their cards say.

`training/embedded/<kind>/<stage>/` holds `adapter.safetensors` (bf16, at most 15 MB), `config.json` (LoRA
rank and scale), `card.json`, and `card.md` made from it. The highest `sequence` is current; two of each kind stay.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acemath_training.embedded.base_model import sha256
from acemath_training.errors import PublishError

Kind = Literal["policy", "reward"]
_CHECKOUT = Path(__file__).resolve().parents[3] / "embedded"
DEFAULT_ROOT = _CHECKOUT if (_CHECKOUT / "policy").is_dir() else Path(sys.prefix) / "share" / "acemath-embedded"
"""The adapters of the checkout; of an installed package those that its wheel brought."""
WEIGHTS = "adapter.safetensors"
LARGEST_ADAPTER = 15_000_000
KEEP = 2


class Card(BaseModel):
    """What a reader must know of one adapter. `figures` come from real runs; nothing is copied from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    stage: str
    sequence: int = Field(ge=0)
    summary: str
    adapter_sha256: str
    parent_sha256: str | None
    base: str
    licence: str
    steps: int = Field(ge=0)
    data_cursor: int = Field(ge=0)
    seed: int
    data: tuple[str, ...]
    held_out: dict[str, tuple[str, ...]]
    recipe: dict[str, Any]
    figures: dict[str, float]
    limits: tuple[str, ...]


def stages(root: Path, kind: Kind) -> list[Path]:
    """Folders of a kind's adapters, oldest first.

    Raises:
        PublishError: when a card is missing or malformed.
    """
    found = [path.parent for path in (root / kind).glob("*/card.json")]
    return sorted(found, key=lambda path: read(path).sequence)


def current(root: Path, kind: Kind) -> Path:
    """The folder of the adapter to publish.

    Raises:
        PublishError: when there is none, or its weights are not those of its card.
    """
    found = stages(root, kind)
    if not found:
        raise PublishError(f"no {kind} adapter under {root / kind}")
    card = read(found[-1])
    if sha256(found[-1] / WEIGHTS) != card.adapter_sha256:
        raise PublishError(f"{found[-1] / WEIGHTS} is not the file its card describes")
    return found[-1]


def read(directory: Path) -> Card:
    """The card of one adapter folder.

    Raises:
        PublishError: when it is missing or malformed.
    """
    try:
        return Card.model_validate_json((directory / "card.json").read_text("utf-8"))
    except (OSError, ValidationError) as error:
        raise PublishError(f"{directory / 'card.json'} cannot be used: {error}") from error


def commit(adapter: Path, card: Card, root: Path) -> Path:
    """Put an adapter with its card under `root` and drop all but the last two of its kind.

    Raises:
        PublishError: when the file is larger than may be committed.
    """
    size = (adapter / WEIGHTS).stat().st_size
    if size > LARGEST_ADAPTER:
        raise PublishError(f"{adapter / WEIGHTS} has {size} bytes, more than {LARGEST_ADAPTER}")
    target = root / card.kind / card.stage
    target.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, "config.json"):
        shutil.copyfile(adapter / name, target / name)
    text = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    (target / "card.json").write_text(text + "\n", encoding="utf-8")
    (target / "card.md").write_text(markdown(card), encoding="utf-8")
    for old in stages(root, card.kind)[:-KEEP]:
        shutil.rmtree(old)
    return target


def markdown(card: Card) -> str:
    """The card for people."""
    held = "\n".join(f"* {source}: {', '.join(names)}" for source, names in sorted(card.held_out.items()))
    figures = "\n".join(f"| {name} | {value:g} |" for name, value in sorted(card.figures.items()))
    recipe = json.dumps(card.recipe, indent=1, sort_keys=True)
    return f"""# {card.kind} · {card.stage}

{card.summary}

Base: {card.base}. Licence of the weights: {card.licence}.
Steps so far: {card.steps}. Seed: {card.seed}. Next row of the data stream: {card.data_cursor}.
Adapter sha256: `{card.adapter_sha256}`; parent: `{card.parent_sha256}`.

## Data
{_bullets(card.data)}

Held out by a draw before their kind was trained on; never trained or sampled on, never used to stop or to choose a
checkpoint. The fourteen word-problem families of the first draw had been measured when the stories were added:
{held}

## Measured
| figure | value |
|---|---|
{figures}

## Limits
{_bullets(card.limits)}

## Recipe
```json
{recipe}
```
"""


def _bullets(items: tuple[str, ...]) -> str:
    return "\n".join(f"* {item}" for item in items)
