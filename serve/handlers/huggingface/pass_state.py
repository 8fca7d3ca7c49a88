"""What a pass leaves in the modules of a model, and its removal."""

from typing import Any

from torch import Tensor, nn

_PLAIN = (Tensor, bool, int, float, str, type(None))


class PassState:
    """The buffers, parts and plain attributes of all modules, as they were before the first pass.

    Rotary embeddings with dynamic factors keep the longest length that they have seen, and BigBirdPegasus keeps full
    attention after its first short text: a later text would be computed otherwise than alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._take()

    def restore(self) -> None:
        if self._weights != self._versions():
            # RWKV divides its weights at its first pass, and notes it in an attribute: both stay as they are.
            self._take()
            return
        for module, buffers, parts, plain in self._saved:
            module._buffers.update(buffers)
            module._modules.update(parts)
            for name, value in plain.items():
                if module.__dict__[name] is not value:
                    setattr(module, name, value)

    def _take(self) -> None:
        self._weights = self._versions()
        self._saved = [
            (module, dict(module._buffers), dict(module._modules), _plain(module)) for module in self._model.modules()
        ]

    def _versions(self) -> int:
        """Grows when a weight is changed in place."""
        return sum(weight._version for weight in self._model.parameters())


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are tensors, numbers, strings or None."""
    return {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
