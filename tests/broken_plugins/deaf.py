"""Never finishes being imported, whatever it is told."""

import contextlib
import time

while True:
    with contextlib.suppress(BaseException):
        time.sleep(3600)
