"""Pillow warns of odd metadata; of a file that decodes nobody wants to know. For files decoded on many threads."""

import os
import threading
import warnings


class _Quiet:
    """Ignores the decoders' warnings until the last thread has left it.

    The filters of warnings belong to the whole process: with a `catch_warnings` for each thread, the one that leaves
    last would put back what another had changed.
    """

    def __init__(self) -> None:
        self._start()
        os.register_at_fork(after_in_child=self._start)  # the parent's other threads are not here to leave

    def _start(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._kept = warnings.catch_warnings()
                self._kept.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|ssl_fast\.data\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._kept.__exit__(None, None, None)


quiet = _Quiet()
