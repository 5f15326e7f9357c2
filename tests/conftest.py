"""What all tests share."""

import os
import signal

# Before torch is imported: tiny products gain nothing from a second thread, and lose much where
# cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A background shell starts its jobs with Ctrl-C ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.helpers.databases", "tests.helpers.home", "tests.helpers.api"]
