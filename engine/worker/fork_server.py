"""Imported first by the fork server, and by nobody else: the kernel ends it with the process that started it.

Its workers end with it, by the same means. It would end by itself only once all of them have, and if it is not stopped.
"""

from __future__ import annotations

import signal

from seesaw.engine.supervision import end_with_kernel_parent

end_with_kernel_parent(signal.SIGKILL)
