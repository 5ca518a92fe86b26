"""What the losses as modules share: settings that are given once, kept as attributes and shown by `print(module)`."""

from typing import Any

from torch import nn

_HIDDEN = ("group", "grad_reduce")  # of a run, not of the loss


class LossModule(nn.Module):
    """A loss with its settings. A subclass names them in its signature and hands them on."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as they stand, for the function."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """The settings that `print(module)` shows."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if name not in _HIDDEN)
