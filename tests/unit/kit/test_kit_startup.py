"""Importing without collections."""

from __future__ import annotations

import gc
import importlib
import sys

import pytest

from cilia.kit import startup
from cilia.kit.startup import importing


def test_nothing_is_collected_while_importing_nor_afterwards() -> None:
    assert gc.isenabled()
    try:
        with importing():
            assert not gc.isenabled()
            made = [object() for _ in range(10)]
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(made)
    finally:
        gc.unfreeze()


def test_what_is_not_wanted_can_not_be_imported_until_the_block_ends() -> None:
    sys.modules.pop("this", None)
    try:
        with importing(without=["this", "sys"]), pytest.raises(ImportError):
            importlib.import_module("this")
        assert sys.modules["sys"] is sys
        assert "this" not in sys.modules
    finally:
        gc.unfreeze()


def test_a_failing_import_leaves_all_as_it_was() -> None:
    try:
        with pytest.raises(ImportError), importing(without=["this"]):
            importlib.import_module("no_such_module_anywhere")
        assert gc.isenabled()
        assert "this" not in sys.modules
    finally:
        gc.unfreeze()


def test_a_started_process_collects_seldom() -> None:
    before = gc.get_threshold()
    try:
        frozen = gc.get_freeze_count()
        startup.started()
        assert gc.get_threshold() == startup.SELDOM
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
