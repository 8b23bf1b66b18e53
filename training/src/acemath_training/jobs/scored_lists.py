"""Lists of responses to one problem as the reward model sees them, and the model that scores a list at once."""

import logging
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acemath_training.data import pools
from acemath_training.data.pools import Pool
from acemath_training.data.rows import Encoder, common_prefix, reward_row
from acemath_training.errors import DataError
from acemath_training.jobs.config import RewardData
from acemath_training.jobs.ranks import rank_and_world, too_long
from acemath_training.jobs.shared_prefix import inner, keys_and_values
from acemath_training.losses import LOSSES

_log = logging.getLogger(__name__)


class ResponseLists(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Item i is one problem's drawn responses, a pure function of (seed, i): epochs follow one another.

    The dictionary is what `ListScorer` takes, already collated.
    """

    def __init__(self, problems: Sequence[Pool], encoder: Encoder, data: RewardData, *, items: int, pad: int) -> None:
        """Take the mixed pools of the training part; `items` is how many lists the run may ask for.

        Raises:
            DataError: when there are no problems.
        """
        if not problems:
            raise DataError("no problem has right and wrong candidates; the reward model cannot be trained")
        self._problems, self._encoder, self._data = list(problems), encoder, data
        self._items, self._pad = items, pad

    def __len__(self) -> int:
        """The number of lists."""
        return self._items

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """The list at `index`."""
        epoch, place = divmod(index, len(self._problems))
        order = list(range(len(self._problems)))
        random.Random(f"{self._data.seed}:{epoch}").shuffle(order)
        pool = self._problems[order[place]]
        rng = random.Random(f"{self._data.seed}:{epoch}:{order[place]}")
        chosen = pools.draw(
            pool,
            rng,
            responses=self._data.responses_per_problem,
            sampling=self._data.sampling,
            top_k=self._data.top_k,
        )
        rows = [reward_row(self._encoder, pool.problem, candidate.text) for candidate in chosen]
        longest = max(len(row) for row in rows)
        if longest > self._data.max_length:
            raise DataError(f"a response list has {longest} tokens in one row, more than {self._data.max_length}")
        return collate_list(rows, [int(candidate.correct) for candidate in chosen], self._pad)


def within_length(found: Sequence[Pool], encoder: Encoder, limit: int) -> tuple[list[Pool], int]:
    """The pools without their candidates of more than `limit` tokens, and how many those were.

    Found before the first step, each rank looking at its share: met later, one would end the run and every resumed one.
    """
    places = [(place, number) for place, pool in enumerate(found) for number in range(len(pool.candidates))]

    def tokens(index: int) -> int:
        pool = found[places[index][0]]
        return len(reward_row(encoder, pool.problem, pool.candidates[places[index][1]].text))

    long = [places[index] for index in too_long(tokens, range(len(places)), limit)]
    if long and rank_and_world()[0] == 0:
        _log.warning("%d of %d responses have more than %d tokens and are left out", len(long), len(places), limit)
    kept = list(found)
    for place in {place for place, _ in long}:
        kept[place] = _without(found[place], {number for at, number in long if at == place})
    return kept, len(long)


def _without(pool: Pool, numbers: set[int]) -> Pool:
    kept = tuple(candidate for number, candidate in enumerate(pool.candidates) if number not in numbers)
    return pool.model_copy(update={"candidates": kept})


def collate_list(rows: Sequence[Sequence[int]], labels: Sequence[int], pad: int) -> dict[str, Tensor]:
    """Responses of one problem, right-padded, with their shared beginning taken out.

    Returns:
        `prefix` [P], `input_ids` [B, L], `attention_mask` [B, P + L], `last` [B] the column of each row's
        last token, `labels` [B].
    """
    shared = min(common_prefix(rows), min(len(row) for row in rows) - 1)
    width = max(len(row) for row in rows) - shared
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), shared + width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row) - shared] = torch.tensor(row[shared:], dtype=torch.long)
        mask[index, : len(row)] = 1
    return {
        "prefix": torch.tensor(rows[0][:shared], dtype=torch.long),
        "input_ids": ids,
        "attention_mask": mask,
        "last": torch.tensor([len(row) - shared - 1 for row in rows]),
        "labels": torch.tensor(labels),
    }


class ListScorer(nn.Module):
    """A sequence classifier with one label whose forward scores all responses of one problem.

    The problem is run once and its keys and values serve every response; the score is read at each row's
    last token, in float32.
    """

    def __init__(self, model: nn.Module, loss: str) -> None:
        """Wrap a `…ForSequenceClassification` model; `loss` is a name of `losses.LOSSES`."""
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self._loss = LOSSES[loss]

    def forward(
        self, prefix: Tensor, input_ids: Tensor, attention_mask: Tensor, last: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Scores [B] (float32) and the loss of one list made by `collate_list`."""
        values = self.scores(prefix, input_ids, attention_mask, last)
        return {"loss": self._loss(values, labels, [len(labels)]), "scores": values.detach()}

    def scores(self, prefix: Tensor, input_ids: Tensor, attention_mask: Tensor, last: Tensor) -> Tensor:
        """Scores [B] in float32."""
        whole = inner(self.model)
        rows, length = input_ids.shape
        cache = keys_and_values(whole.model, prefix, rows)
        positions = torch.arange(len(prefix), len(prefix) + length, device=input_ids.device)
        hidden = whole.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions.expand(rows, length),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        final = hidden[torch.arange(rows, device=hidden.device), last].float()
        values: Tensor = (final * whole.score.weight[0].float()).sum(-1)
        return values
