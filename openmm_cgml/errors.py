"""Exceptions: each message says what was found and what to do about it."""


class CGMLError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(CGMLError, ValueError):
    """A file, array or argument does not fit; the message names it and the remedy."""


class ModelFileError(InputError):
    """A model file is damaged, of an unknown version, or made for something else."""


class UntrustedModelError(ModelFileError):
    """A model file's program does something that an energy function has no reason to do."""


class BackendError(CGMLError, RuntimeError):
    """No installed backend can evaluate the model; see ``cgml doctor``."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
