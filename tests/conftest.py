"""How the suite is shared out among processes; `shared.py` has what its tests share."""

import os

import pytest

# As in commands (`process.set_up_logging`), which else take a third longer to import.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# Modules that take minutes, which several processes begin with, so that none ends alone.
_LONG = ("test_survive", "test_probe", "test_app", "test_prepare", "test_main")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, as many tests wait for what they have killed."""
    return min(os.cpu_count() + 1, 4)


def pytest_configure(config):
    # A process that hands its tests to others runs none, and waits for no import.
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in _LONG)
