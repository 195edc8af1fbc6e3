"""The module that the hook waits for."""

from __future__ import annotations

from fakes.llama import FakeLlama


class Llama(FakeLlama):
    """Arithmetic instead of a model."""
