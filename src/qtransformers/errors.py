"""One family of errors. Every message names the file, tensor or field, what was found, what was expected, what to do."""

from __future__ import annotations


class QTransformersError(Exception):
    """Base of every error this library raises on purpose; `exit_code` is what the command ends with."""

    exit_code = 1


class ConfigError(QTransformersError, ValueError):
    """A setting, argument or request field that cannot be honoured."""

    exit_code = 2


class ContextLengthError(ConfigError):
    """A prompt and an answer that are longer than the context together; the message carries the counts."""


class ConstraintError(ConfigError):
    """A schema or grammar that is invalid, costs too much, or can allow no token."""


class ModelNotFoundError(QTransformersError, FileNotFoundError):
    """A path, repository or file that is not there (or is a git-LFS pointer where the file itself is needed)."""

    exit_code = 3


class UnsupportedError(QTransformersError):
    """A well-formed model that asks for an architecture, type or feature we do not have."""

    exit_code = 4


class GGUFError(QTransformersError):
    """A GGUF file that is malformed, truncated or uses a retired or unknown tensor type."""

    exit_code = 4


class LoadError(QTransformersError):
    """Files that are each readable but do not fit together: weights, config, vocabulary, shards."""

    exit_code = 4


class ShardError(GGUFError, LoadError):
    """Shards of a GGUF model that are missing, misnamed or of different models."""


class TokenizerError(QTransformersError):
    """A vocabulary that cannot be built or a text that cannot be encoded."""

    exit_code = 4


class TemplateError(QTransformersError):
    """A chat template that is invalid, unsafe, too slow or too large."""

    exit_code = 4


class MissingExtraError(QTransformersError, ImportError):
    """Packages of an extra that something needs and that are not installed."""

    exit_code = 2


class InsufficientMemoryError(QTransformersError, MemoryError):
    """A model, cache or request that does not fit; the message carries the numbers."""

    exit_code = 5


class NetworkError(QTransformersError):
    """The Hub could not be reached or refused, or a stage of a pipeline is gone."""

    exit_code = 6
