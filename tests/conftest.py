"""What all tests share."""

pytest_plugins = ["tests.helpers.databases"]
