"""Hostile ids, servers, shells and files. The soak runs the same checks with other draws (soak/test_hostile.py)."""

import random

import pytest

from support.hostility import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_hostile_gets_through(name, tmp_path):
    assert CHECKS[name](random.Random(20261123), tmp_path).total() >= 5
