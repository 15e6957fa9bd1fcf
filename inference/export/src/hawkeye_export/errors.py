"""Errors that a user can act on; the command line prints their message without a traceback."""


class ExportError(Exception):
    """Base of every error below."""


class UntrustedWeightsError(ExportError):
    """A weights file is not the published one. It was not opened as a pickle."""


class FetchError(ExportError):
    """A package could not be fetched or does not hold the expected file."""


class VerificationError(ExportError):
    """An exported module disagrees with its reference implementation."""


class UnsupportedGraphError(ExportError):
    """An ONNX graph has an operator or attribute that the converter does not know."""
