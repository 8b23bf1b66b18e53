"""Test problems from the held-out families, for the evaluation: the only code that makes any.

Fixed seed and round-robin over the families, so that two machines make the same file. Rows have `id`,
`problem`, `answer`, `source` and `meta.template`, which the bootstrap draws over.
"""

import random
from collections.abc import Iterator
from typing import Any

from acemath_training.data import gsm_symbolic, splits, word_problems

SEED = 990_000
_BLOCK = 2_000


def word_problem_rows(per_family: int, files: tuple[str, ...] = word_problems.FIRST_FILES) -> Iterator[dict[str, Any]]:
    """`per_family` different problems of each held-out word-problem family of `files`."""
    known = word_problems.families(files)
    for family in [name for name in splits.load().held_out[word_problems.SOURCE] if name in known]:
        rng, seen = random.Random(f"{SEED}:{family}"), set[str]()
        while len(seen) < per_family:
            made = word_problems.draw(known[family], rng)
            if made.problem not in seen:
                yield _row(f"word-{family}-{len(seen)}", made.problem, made.answer, made.source, family)
                seen.add(made.problem)


def story_rows(per_family: int) -> Iterator[dict[str, Any]]:
    """`per_family` different problems of each held-out family of stories, which were drawn later."""
    return word_problem_rows(per_family, word_problems.LATER_FILES)


def gsm_symbolic_rows(per_family: int) -> Iterator[dict[str, Any]]:
    """`per_family` problems of each held-out gsm_symbolic template, at the package's own difficulty.

    Unlike training, nothing is filtered out here: numbers may be large and solutions long.
    """
    counts = {int(template): 0 for template in splits.load().held_out[gsm_symbolic.SOURCE]}
    data = gsm_symbolic.dataset(SEED, _BLOCK)
    for index in range(_BLOCK):
        template = data.task_indices[index]
        if counts.get(template, per_family) < per_family:
            entry = data[index]
            name = f"gsm-symbolic-{template}-{counts[template]}"
            yield _row(name, gsm_symbolic.question_of(entry), str(entry["answer"]), gsm_symbolic.SOURCE, str(template))
            counts[template] += 1


def _row(name: str, problem: str, answer: str, source: str, family: str) -> dict[str, Any]:
    return {
        "id": name,
        "problem": problem,
        "answer": answer,
        "source": source,
        "meta": {"template": f"{source}/{family}"},
    }
