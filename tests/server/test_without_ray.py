"""What is said where the extra `ray` is missing."""

import importlib
import sys

import pytest

from gptoss import Error


def test_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "gptoss.server.front.ray_app", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Error, match=r"ray is missing: pip install .*\[ray\]"):
        importlib.import_module("gptoss.server.front.ray_app")
