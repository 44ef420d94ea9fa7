"""What a training run is made of, as frozen dataclasses; nothing here imports TensorFlow.

A recipe is a value of `Config`. Change one with `dataclasses.replace`, or from the command line
with `override(config, "train.epochs=3")`; either way every check runs again. A setting that another
one makes meaningless must be left at its default, so that nothing is ignored.
"""

from efficientnet_tf.config.data import DataConfig
from efficientnet_tf.config.model import ModelConfig
from efficientnet_tf.config.run import Config
from efficientnet_tf.config.student import StudentConfig
from efficientnet_tf.config.text import differences, from_json, override, to_json, to_table
from efficientnet_tf.config.train import FinetuneConfig, ProgressiveConfig, TrainConfig

__all__ = [
    "Config",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "ProgressiveConfig",
    "StudentConfig",
    "TrainConfig",
    "differences",
    "from_json",
    "override",
    "to_json",
    "to_table",
]
