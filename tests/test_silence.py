"""What Lightning logs while nothing is trained that anybody has asked for."""

import logging

import pytest

from lightning_gen.silence import silence

LOGGERS = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]


def test_it_is_quiet_below_a_level_and_as_it_was_afterwards_also_after_an_error():
    LOGGERS[0].setLevel(logging.DEBUG)
    before = [logger.level for logger in LOGGERS]

    @silence(logging.ERROR)
    def fail():
        assert not any(logger.isEnabledFor(logging.WARNING) for logger in LOGGERS)
        assert all(logger.isEnabledFor(logging.ERROR) for logger in LOGGERS)
        raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
        assert [logger.level for logger in LOGGERS] == before
