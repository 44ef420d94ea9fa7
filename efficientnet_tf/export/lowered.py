"""A network's graph in bfloat16, rewritten when it is exported.

TensorFlow can do the same when it loads a graph, but only where its configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.grappler import tf_optimizer

_PASS = "auto_mixed_precision_onednn_bfloat16"


def bfloat16(function, names: Sequence[str]) -> Callable:
    """Rewrites a function without variables: its convolutions compute in bfloat16.

    Args:
        function: from `saved_model.core_function`, called with float32 pictures.
        names: of its outputs.

    Returns:
        What puts the rewritten graph into the graph that is being traced: images float32 to outputs
        float32 by name. The weights are bfloat16 constants.
    """
    outputs = [tensor.name for tensor in function.outputs]
    definition = tf.compat.v1.graph_util.extract_sub_graph(
        function.graph.as_graph_def(), [name.partition(":")[0] for name in outputs]
    )
    with tf.Graph().as_default() as whole:
        tf.import_graph_def(definition, name="")
    meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=whole)
    meta_graph.collection_def["train_op"].node_list.value.extend(outputs)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.optimizers.extend([_PASS, "constfold"])
    setattr(rewrite, _PASS, rewriter_config_pb2.RewriterConfig.ON)
    rewrite.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewritten = tf_optimizer.OptimizeGraph(config, meta_graph)

    def call(images):
        found = tf.import_graph_def(
            rewritten, {function.inputs[0].name: images}, outputs, name="bfloat16"
        )
        return {name: tf.cast(t, tf.float32) for name, t in zip(names, found, strict=True)}

    return call
