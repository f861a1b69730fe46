"""Counts the forwards that the residual cache computed, from the pipeline's log."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager


class Reports(logging.Handler):
    """A handler that adds up the cache's reports."""

    computed = forwards = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a report."""
        if found := re.fullmatch(r"(\d+) of (\d+) forwards computed", record.getMessage()):
            self.computed += int(found[1])
            self.forwards += int(found[2])


@contextmanager
def counting() -> Iterator[Reports]:
    """Collects what the pipeline reports inside."""
    log, reports = logging.getLogger("ovis_core.pipeline"), Reports()
    log.setLevel(logging.INFO)
    log.addHandler(reports)
    try:
        yield reports
    finally:
        log.removeHandler(reports)
