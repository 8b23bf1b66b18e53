"""Conversations to token ids, with a version's own tokenizer and chat template; no tensor library."""

from acemath_prompts.encoder import PromptEncoder
from acemath_prompts.growing import GrowingTurn, OpenTurn
from acemath_prompts.rendering import RenderingMismatch, check_rendering
from acemath_prompts.template import ChatTemplate, TemplateError
from acemath_prompts.tokenizer import read_tokenizer

__all__ = [
    "ChatTemplate",
    "GrowingTurn",
    "OpenTurn",
    "PromptEncoder",
    "RenderingMismatch",
    "TemplateError",
    "check_rendering",
    "read_tokenizer",
]
