"""The reference is imported only when it is asked for: `make test` needs neither torch nor transformers."""

from __future__ import annotations

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == "not parity" else None
