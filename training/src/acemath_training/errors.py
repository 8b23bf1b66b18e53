"""Errors of training. Each message is one sentence that a person can act on."""


class TrainingError(Exception):
    """Base of every error this distribution raises on purpose."""


class ConfigError(TrainingError):
    """A job's configuration is wrong; the message names the file and the field."""


class DataError(TrainingError):
    """A data source, template or row cannot be used; the message names it."""


class CheckpointError(TrainingError):
    """A checkpoint is incomplete, damaged or made under another topology."""


class PublishError(TrainingError):
    """A model cannot be published; the message says which step failed."""
