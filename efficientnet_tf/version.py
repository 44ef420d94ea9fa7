"""The version of the package, where packaging can read it without importing Keras."""

__version__ = "0.1.0"
