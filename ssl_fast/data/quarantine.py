"""The record of files that cannot be used: one JSON object a line, {"path", "reason"}, shared by all processes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger(__name__)


class Quarantine:
    """A quarantine file.

    Args:
        path: made when the first file is recorded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = set(self.files())

    def add(self, refused: Sequence[tuple[str, str]]) -> int:
        """Appends those of (file, reason) that this process does not know yet; returns how many they were."""
        new = [(name, reason) for name, reason in refused if name not in self._known]
        if not new:
            return 0
        self._known.update(name for name, _ in new)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps({"path": name, "reason": reason}) + "\n" for name, reason in new))
        except OSError as error:
            _log.warning("quarantine not written: %s", error)
        return len(new)

    def files(self) -> dict[str, str]:
        """{file: reason} of all that was recorded, by any process; a line cut short by a crash is passed over."""
        found = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                entry = json.loads(line)
                found[str(entry["path"])] = str(entry["reason"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def __len__(self) -> int:
        return len(self.files())
