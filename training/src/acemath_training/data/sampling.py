"""One sampling job: base and adapter merged, served by vLLM for a while, candidates labelled and saved."""

import tempfile
from pathlib import Path

from acemath_answers import AnswerJudge, Verdict, WorkerLimits, extract_answer
from acemath_prompts import PromptEncoder
from acemath_training.data import candidates
from acemath_training.data.candidates import Judge
from acemath_training.data.mixture import Mixture
from acemath_training.embedded import merge
from acemath_training.errors import ConfigError
from acemath_training.jobs.config import CandidatesConfig

_TRUTH = {Verdict.EQUAL: True, Verdict.DIFFERENT: False}
_COMPARISON_S = 10.0  # vLLM keeps every core busy meanwhile


def run(config: CandidatesConfig, base: Path, work: Path, *, threads: int = 2) -> int:
    """Sample until the file has enough problems or the time is up; returns how many it holds.

    Raises:
        ConfigError: the job has no generated mixture.
        DataError: the server fails.
    """
    if not config.data.mixture:
        raise ConfigError("a candidates job needs data.mixture")
    mixture = Mixture(list(config.data.mixture), config.data.seed, work)
    encoder = PromptEncoder.from_directory(base)
    with (
        tempfile.TemporaryDirectory(dir=work) as scratch,
        AnswerJudge(WorkerLimits(timeout_s=_COMPARISON_S)) as answers,
    ):
        checkpoint = merge.policy(base, work / config.policy, Path(scratch) / "policy")
        with candidates.vllm_server(checkpoint, work / "vllm.log", threads=threads) as url:
            return candidates.sample(
                mixture,
                encoder,
                judge(answers),
                url,
                work / config.file,
                problems=config.problems,
                first=config.data.cursor,
                n=config.n,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                minutes=config.max_minutes,
                seed=config.seed,
            )


def judge(answers: AnswerJudge) -> Judge:
    """Whether a text's final answer equals the reference; None when the comparison gave no verdict."""

    def correct(text: str, reference: str) -> bool | None:
        found = extract_answer(text)
        if found is None:
            return False
        return _TRUTH.get(answers.equivalent(found, reference))

    return correct
