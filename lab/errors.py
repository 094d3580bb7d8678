"""What can go wrong in the laboratory."""


class LabError(RuntimeError):
    """The laboratory could not be built, used or taken down; the message says why."""


class ClientError(LabError):
    """A client got no answer; the message holds its command and its own words."""
