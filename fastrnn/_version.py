"""The version, in the one place that setup.py, pyproject.toml and the package read."""

__version__ = "0.1.0"
