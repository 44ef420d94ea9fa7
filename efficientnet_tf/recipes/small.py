"""Recipes that end within seconds or minutes on a computer's processor."""

import dataclasses

from efficientnet_tf.config import Config, DataConfig, ModelConfig, ProgressiveConfig, TrainConfig

# V2-B0's stages at a size that fits 8x8 digits shown at 32 px: total stride 8 leaves maps of 4x4.
_DIGITS_BLOCKS = (
    "r1_k3_s11_e1_i16_o16_c1",
    "r2_k3_s22_e4_i16_o32_c1",
    "r2_k3_s22_e4_i32_o64_se0.25",
    "r2_k3_s11_e4_i64_o80_se0.25",
)

# scikit-learn's handwritten digits, 1,797 pictures, 10 classes. 25 to 32 s on 2 processor cores.
# Test accuracy 99.4 to 99.7 % over 3 seeds (359 pictures).
_DIGITS = Config(
    model=ModelConfig(
        variant="efficientnetv2-b0",
        blocks=_DIGITS_BLOCKS,
        stem_filters=16,
        head_filters=256,
        image_size=32,
        dropout_rate=0.2,
        drop_connect_rate=0.1,
    ),
    data=DataConfig(source="digits", batch_size=64, shift=3),
    train=TrainConfig(
        epochs=25,
        learning_rate=0.02,
        warmup_epochs=2.0,
        label_smoothing=0.1,
        weight_decay=1e-5,
        ema_decay=0.99,
        precision="float32",
    ),
)

# Small pictures of any kind, as CIFAR-10's 32x32, shown at 64 px: stages of plain 3x3 convolutions,
# which processors compute fastest. Give your own with --data=folder:PATH. CIFAR-10 with 48,000
# training pictures (--set=data.holdout=0.04), seed 0: 90.0 % test accuracy after 46 minutes on two
# processor cores in bfloat16.
_SMALL = Config(
    model=ModelConfig(
        variant="efficientnetv2-b0",
        blocks=(
            "r1_k3_s11_e1_i32_o32_c1",
            "r2_k3_s22_e1_i32_o64_c1",
            "r3_k3_s22_e1_i64_o192_c1",
            "r2_k3_s22_e1_i192_o256_c1",
        ),
        stem_filters=32,
        head_filters=512,
        image_size=64,
        dropout_rate=0.2,
        drop_connect_rate=0.0,
    ),
    data=DataConfig(
        source="tfds:cifar10",
        batch_size=128,
        flip=True,
        shift=8,
        cutout=0.4,
    ),
    train=TrainConfig(
        epochs=42,
        optimizer="sgd",
        learning_rate=0.2,
        warmup_epochs=1.0,
        label_smoothing=0.1,
        weight_decay=5e-4,
        ema_decay=0.998,
    ),
)

# The same network and epochs, from 32 to 64 px with rising dropout (V2 Sec. 4.2).
_SMALL_PROGRESSIVE = dataclasses.replace(
    _SMALL,
    progressive=ProgressiveConfig(stages=3, image_size=32, dropout_rate=0.0),
)

# Made-up pictures through every part of a run in seconds: crop, RandAugment, mixup, cutmix, two
# progressive stages, moving average, evaluation. They are noise: no accuracy to expect.
# Hardware: any, a processor's core is enough. Of neither paper.
_SMOKE = Config(
    model=ModelConfig(
        variant="efficientnetv2-b0",
        blocks=(
            "r1_k3_s11_e1_i8_o8_c1",
            "r1_k3_s22_e4_i8_o16_c1",
            "r2_k3_s22_e4_i16_o24_se0.25",
        ),
        stem_filters=8,
        head_filters=32,
        image_size=32,
    ),
    data=DataConfig(
        source="fake:4x40x40",
        batch_size=8,
        crop="v2",
        flip=True,
        augment="randaugment",
        mixup=0.2,
        cutmix=0.2,
    ),
    train=TrainConfig(
        epochs=2,
        steps_per_call=5,
        warmup_epochs=1.0,
        label_smoothing=0.1,
        weight_decay=1e-5,
        ema_decay=0.99,
        precision="float32",
    ),
    progressive=ProgressiveConfig(
        stages=2, image_size=24, dropout_rate=0.1, magnitude=5.0, mixup=0.0, cutmix=0.0
    ),
)

RECIPES: dict[str, Config] = {
    "digits": _DIGITS,
    "small": _SMALL,
    "small-progressive": _SMALL_PROGRESSIVE,
    "smoke": _SMOKE,
}
