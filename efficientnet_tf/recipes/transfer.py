"""Recipes that start from published weights: the papers' transfer sets, and pictures of your own.

Transfer follows V2's released code, `Cifar10Ft` and its like in datasets.py (10,000 steps of 512
pictures for every set). The paper (V2 Sec. 5.3) decays the rate by a cosine and has no weight
decay: `--set=train.schedule=cosine --set=train.weight_decay=0`. V1 (Sec. 5.3) refers to other
papers' settings; the sets that only V1 reports have V2's here, an extrapolation.

The papers train on every training picture. These recipes hold a tenth out to choose the best epoch
by. To train on all, and validate on the test split: `--set=data.holdout=0`, for Flowers
`--set=data.train_split=train+validation --set=data.validation_split=test`. The best epoch is then
chosen by the test split: compare the last one's accuracy with the papers'.
"""

import dataclasses
from typing import Any

from efficientnet_tf.config import Config, DataConfig, FinetuneConfig, ModelConfig, TrainConfig
from efficientnet_tf.recipes import imagenet


def _transfer(source: str, **data: Any) -> Config:
    """V2-S at 384 px, 512 pictures. For a GPU of 16 GB: --set=train.accumulate=16, or fewer pixels.

    Epochs of 100 steps, because 10,000 steps are 2,800 passes over Flowers. Fifteen passes, the
    code's other limit, are fewer than 10,000 steps for every set here.
    """
    return Config(
        model=dataclasses.replace(
            imagenet.FT_MODEL, variant="efficientnetv2-s", image_size=384, weights="imagenet"
        ),
        data=dataclasses.replace(imagenet.FT_DATA, source=source, **data),
        train=dataclasses.replace(
            imagenet.FT_TRAIN, epochs=100, min_steps=0, steps_per_epoch=100, steps_per_call=10
        ),
    )


# A folder of one's own with a folder per class, tens to thousands of pictures each:
#   python scripts/train.py --recipe=finetune --data=folder:PATH --weights=imagenet
# The classifier learns alone for three epochs, then everything, earlier stages more slowly. Batch
# normalization keeps ImageNet's statistics, which a small batch or a small set would spoil. As many
# pictures per step as fit the memory, and the learning rate with them. Mirroring and random crops
# suit photographs; for what has a side or a scale (text, scans): --set=data.flip=false
# --set=data.crop=none. Hundreds of pictures per class take --augment=randaugment.
_FINETUNE = Config(
    model=ModelConfig(variant="efficientnetv2-b0", image_size=224, weights="imagenet"),
    data=DataConfig(
        source="folder:pictures",
        batch_size=None,
        crop="v2",
        eval_crop="pad32",  # as V2-B0's weights were evaluated
        flip=True,
    ),
    train=TrainConfig(
        epochs=30,
        min_steps=500,
        optimizer="adamw",
        learning_rate=0.004,
        schedule="cosine",
        warmup_epochs=1.0,
        label_smoothing=0.1,
        weight_decay=0.05,
        weight_decay_in="update",
        clip_norm=1.0,
        ema_decay=0.99,
        patience=10,
    ),
    finetune=FinetuneConfig(head_epochs=3, unfreeze="all", layer_decay=0.8, freeze_batch_norm=True),
)

RECIPES: dict[str, Config] = {
    # Hardware and hours of the papers' transfer sets, cifar10 to aircraft: not reported.
    # V2 Table 8, V2-S: 98.7 %
    "cifar10": _transfer("tfds:cifar10"),
    # V2 Table 8, V2-S: 91.5 %
    "cifar100": _transfer("tfds:cifar100"),
    # V2 Table 8, V2-S: 97.9 %, trained on both parts that are not the test set, 2,040 pictures.
    # Here the last fifth of the second one (204 pictures) chooses the epoch.
    "flowers": _transfer(
        "tfds:oxford_flowers102",
        train_split="train+validation[:80%]",
        validation_split="validation[80%:]",
        test_split="test",
    ),
    # V2 Table 8, V2-S: 93.8 %
    "cars": _transfer("tfds:cars196"),
    # V1 Table 5, B4: 94.8 %; not reported for V2
    "pets": _transfer("tfds:oxford_iiit_pet"),
    # V1 Table 5, B4: 91.5 %; not reported for V2
    "food101": _transfer("tfds:food101"),
    # V1 Table 5, B3: 90.7 %; not reported for V2. FGVC Aircraft is not in TensorFlow Datasets:
    # give its folder, with train/<variant>/ (6,667 pictures) and test/<variant>/ (3,333).
    "aircraft": _transfer("folder:aircraft"),
    # 5,000 and 8,000 labelled pictures of 96x96; neither paper reports it, nor hardware for it
    "stl10": _transfer("tfds:stl10"),
    # Your own pictures; no accuracy to expect
    "finetune": _FINETUNE,
}
