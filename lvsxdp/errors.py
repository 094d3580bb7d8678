"""The one tree of errors; each class carries the exit code that the command ends with."""

from __future__ import annotations


class LvsxdpError(Exception):
    """Something went wrong that the person at the command line can act on."""

    exit_code = 1


class ConfigError(LvsxdpError):
    """The configuration is wrong.  `problems` holds one line for each fault that was found."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NotFoundError(LvsxdpError):
    """What the command names does not exist."""

    exit_code = 3


class ConflictError(LvsxdpError):
    """What the command asks for collides with what is there."""

    exit_code = 4


class DatapathError(LvsxdpError):
    """The kernel refused: compiling, loading, attaching or a map."""

    exit_code = 5
