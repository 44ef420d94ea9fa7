"""Keras models: the blocks, the builder, and one constructor per variant."""
