"""A whole run: all sections, and the checks that concern several of them."""

import dataclasses

from efficientnet_tf.config.data import DataConfig
from efficientnet_tf.config.model import ModelConfig
from efficientnet_tf.config.student import StudentConfig
from efficientnet_tf.config.train import FinetuneConfig, ProgressiveConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole training run: network, data, training, progressive learning, fine-tuning, teacher."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    progressive: ProgressiveConfig = dataclasses.field(default_factory=ProgressiveConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)

    def __post_init__(self) -> None:
        if self.data.shift >= self.train_size:
            raise ValueError(
                "data.shift must be smaller than the training pictures (data.train_size, or"
                " model.image_size where that is none). Received:"
                f" data.shift={self.data.shift}, {self.train_size} px"
            )
        start = self.progressive.image_size
        if self.progressive.stages > 1 and start > self.train_size:
            raise ValueError(
                "progressive.image_size must not exceed the training size (data.train_size, or"
                f" model.image_size where that is none). Received: progressive.image_size={start},"
                f" {self.train_size} px"
            )
        if self.progressive.magnitude is not None and self.data.augment != "randaugment":
            raise ValueError("progressive.magnitude is used only with data.augment=randaugment.")
        if self.finetune.head_epochs + self.progressive.stages > self.train.epochs:
            raise ValueError(
                "There must be an epoch for each stage after finetune.head_epochs. Received:"
                f" train.epochs={self.train.epochs}, progressive.stages={self.progressive.stages},"
                f" finetune.head_epochs={self.finetune.head_epochs}"
            )
        if self.model.sync_batch_norm and self.train.accumulate > 1:
            raise ValueError(
                "model.sync_batch_norm needs train.accumulate=1: replicas cannot exchange the"
                " statistics of parts of their batches. Received:"
                f" train.accumulate={self.train.accumulate}"
            )
        taught = "teacher" if self.student.teacher else "distill" if self.student.distill else None
        if taught and self.train.loss != "softmax":
            raise ValueError(
                f"student.{taught} needs train.loss=softmax: a teacher's answers are probabilities"
                f" of classes that exclude each other. Received: train.loss={self.train.loss!r}"
            )
        if self.student.unlabeled and self.data.service:
            raise ValueError(
                "student.unlabeled and data.service cannot be used together: a tf.data service"
                " deals out the pictures of one source. Received:"
                f" data.service={self.data.service!r}"
            )

    @property
    def train_size(self) -> int:
        """Pixels of training pictures, at the end of training."""
        return self.data.train_size or self.model.image_size

    @property
    def batch_size(self) -> int:
        """Pictures per step, over all replicas.

        Raises:
            ValueError: it has not been chosen yet (`data.batch_size` is None).
        """
        if self.data.batch_size is None:
            raise ValueError("data.batch_size is none: it is chosen when training starts.")
        return self.data.batch_size

    @property
    def scaled_learning_rate(self) -> float:
        """Highest learning rate at this batch size (linear scaling, as the papers do)."""
        return self.train.learning_rate * self.batch_size / 256
