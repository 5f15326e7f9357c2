"""What all tests share."""

import os

# Before torch is imported: tiny products gain nothing from a second thread, and lose much where
# cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.helpers.databases", "tests.helpers.home"]
