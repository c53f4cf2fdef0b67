"""What is said where the extra `ray` is missing."""

import importlib
import sys

import pytest

from gptoss import Error
from gptoss.extras import install_hint


def test_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "gptoss.server.front.ray_app", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Error, match="ray is missing: ") as caught:
        importlib.import_module("gptoss.server.front.ray_app")
    assert str(caught.value).endswith(install_hint("ray"))
