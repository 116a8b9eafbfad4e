"""Imported last by the fork server, and by nobody else: it ends without taking torch down, which takes seconds.

Nobody waits for it, so a server that has ended would seem to have left it behind. Its forks run no exit handlers.
"""

from __future__ import annotations

import atexit
import os

atexit.register(os._exit, 0)
