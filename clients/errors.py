"""What ends a client's command before it has measured anything."""

from __future__ import annotations


class ClientError(Exception):
    """One sentence that says what to change; the command ends with exit code 2."""
