"""The papers as data, and arithmetic on it. Imports neither Keras nor TensorFlow.

`tables.VARIANTS` holds the rows, `scaling.resolve` turns one into a `Network` of scaled blocks,
and `complexity.count` adds up what it costs. The model builder consumes the same `Network`.
"""

from efficientnet_tf.arch.blocks import BlockArgs
from efficientnet_tf.arch.scaling import Block, Network, resolve
from efficientnet_tf.arch.tables import VARIANTS, Variant

__all__ = ["VARIANTS", "Block", "BlockArgs", "Network", "Variant", "resolve"]
