"""Both papers' recipes for ImageNet: V1, V2 as in the paper and as released, ImageNet-21k.

Sources: V1 is arXiv 1905.11946 and `tensorflow/tpu` `models/official/efficientnet`; V2 is arXiv
2104.00298 and `google/automl` `efficientnetv2`. Accuracies are top-1 on the 50,000 validation
pictures as the authors report them; independent evaluations of the same weights are up to 0.7
lower. Hours are V2 Table 7's, on 32 TPUv3 cores.

Every recipe trains on 1,004 of the 1,024 training files and validates on the other 20, as both
papers do ("minival", about 25,000 pictures); the validation files are the test split. The
operations of AutoAugment and RandAugment are the mended ones but for the recipes that end in
"-released": `--set=data.bug_compat=true` gives those that the published weights were trained with.

The pictures are expected in the folder `imagenet` (or `imagenet21k`) of the working directory, as
TFRecord files in the official layout. Where yours are is said by `--data=imagenet:PATH` (or
`--data=imagenet21k:PATH`).
"""

import dataclasses

from efficientnet_tf.arch import VARIANTS
from efficientnet_tf.config import Config, DataConfig, ModelConfig, ProgressiveConfig, TrainConfig

# V1 Sec. 5.2 and V1 main.py; V2 Sec. 5.1 and V2 hparams.py: RMSProp with decay and momentum 0.9,
# epsilon 0.001; from 0 up to the highest rate in 5 epochs, times 0.97 every 2.4 epochs. Both papers
# name a rate of 0.256, which is 0.016 for 256 pictures at V2's batch of 4096; V1's code has the
# same 0.016, and so 0.128, at its batch of 2048.
_TRAIN = TrainConfig(
    epochs=350,
    steps_per_call=100,
    optimizer="rmsprop",
    learning_rate=0.016,
    momentum=0.9,
    schedule="exponential",
    decay_epochs=2.4,
    decay_rate=0.97,
    warmup_epochs=5.0,
    label_smoothing=0.1,
    weight_decay=1e-5,
    weight_decay_in="loss",
    ema_decay=0.9999,
    precision="mixed_bfloat16",
)
# V1 preprocessing.py; V2 preprocess_legacy.py, which V2-B0 to V2-B3 are trained with.
_V1_DATA = DataConfig(
    source="imagenet:imagenet",
    batch_size=2048,
    holdout=20 / 1024,
    crop="v1",
    resize="bicubic_legacy",
    eval_crop="pad32",
    eval_resize="bicubic_legacy",
    flip=True,
    augment="autoaugment",
)
# V2 preprocessing.py; whole pictures, squashed, are evaluated from 320 px.
_V2_DATA = DataConfig(
    source="imagenet:imagenet",
    batch_size=4096,
    holdout=20 / 1024,
    crop="v2",
    resize="bilinear",
    eval_crop="squash",
    eval_resize="bilinear",
    flip=True,
    augment="randaugment",
    num_layers=2,
)


def _v1(variant: str) -> Config:
    """V1 Sec. 5.2 with AutoAugment; V1 README.md, "with AutoAugment". Dropout is the variant's."""
    return Config(
        model=ModelConfig(variant, image_size=VARIANTS[variant].resolution, drop_connect_rate=0.2),
        data=_V1_DATA,
        train=dataclasses.replace(_TRAIN, weight_decay_on="all_but_norm"),
    )


def _v1_randaugment(variant: str, magnitude: float) -> Config:
    """V1 README.md, "with RandAugment": the same but for the augmentation."""
    config = _v1(variant)
    data = dataclasses.replace(
        config.data, augment="randaugment", num_layers=2, magnitude=magnitude
    )
    return dataclasses.replace(config, data=data)


def _v2_paper(variant: str, size: int, magnitude: float, mixup: float, dropout: float) -> Config:
    """V2 Sec. 4.2 and 5.1, Algorithm 1, Table 6: the last stage's values; all models start alike.

    Stochastic depth is 0.2 throughout (Sec. 5.1: survival probability 0.8): Algorithm 1 is written
    for any regularisation, but Table 6 has dropout, RandAugment and mixup only.
    `--set=progressive.drop_connect_rate=0.1` lets it rise as well. There is no cutmix.
    """
    return Config(
        model=ModelConfig(
            variant,
            image_size=VARIANTS[variant].resolution,
            dropout_rate=dropout,
            drop_connect_rate=0.2,
        ),
        data=dataclasses.replace(_V2_DATA, train_size=size, magnitude=magnitude, mixup=mixup),
        train=_TRAIN,
        progressive=ProgressiveConfig(
            stages=4,
            rule="paper",
            image_size=128,
            dropout_rate=0.1,
            magnitude=5.0,
            mixup=0.0 if mixup else None,
        ),
    )


def _v2_released(variant: str, magnitude: float, mix: float) -> Config:
    """V2 effnetv2_configs.py and main.py: what the released code does.

    Against the paper: the first stage is a quarter of the way from 128 px up; weaker RandAugment;
    cutmix beside mixup; dropout is the variant's throughout (its schedule is commented out).
    """
    row = VARIANTS[variant]
    start = 0.0 if mix else None
    return Config(
        model=ModelConfig(variant, image_size=row.resolution, drop_connect_rate=0.2),
        data=dataclasses.replace(
            _V2_DATA,
            train_size=row.train_resolution,
            magnitude=magnitude,
            mixup=mix,
            cutmix=mix,
            bug_compat=True,
        ),
        train=_TRAIN,
        progressive=ProgressiveConfig(
            stages=4, rule="released", image_size=128, magnitude=5.0, mixup=start, cutmix=start
        ),
    )


def _v2_base_paper(variant: str) -> Config:
    """V2 Sec. 6.1, "Scaling Down": without progressive learning.

    The paper says no more about how these networks were trained. What it leaves open (sizes,
    dropout, AutoAugment and pictures as V1's "for fair comparison") is as in effnetv2_configs.py.
    """
    row = VARIANTS[variant]
    return Config(
        model=ModelConfig(variant, image_size=row.resolution, drop_connect_rate=0.2),
        data=dataclasses.replace(_V1_DATA, batch_size=4096, train_size=row.train_resolution),
        train=_TRAIN,
    )


def _v2_base_released(variant: str) -> Config:
    """V2 effnetv2_configs.py and main.py: four stages in which only the size changes."""
    config = _v2_base_paper(variant)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, bug_compat=True),
        progressive=ProgressiveConfig(stages=4, rule="released", image_size=128),
    )


def _imagenet21k(variant: str) -> Config:
    """V2 datasets.py `ImageNet21k`: crop and flip, hardly any regularisation, at 224 px.

    The published weights were trained with the sigmoid loss, summed over classes (V2 README.md;
    `loss_type="custom"` in main.py). The paper (Sec. 5.2) has softmax over the labels of a picture,
    each with the same share, and 60 or 30 epochs. Of 2,048 files, 16 are the test split (100,357
    pictures) and 4 the validation split.
    """
    return Config(
        model=ModelConfig(
            variant,
            image_size=224,
            normalization="v2",  # also for B0 to B3
            dropout_rate=1e-6,
            drop_connect_rate=0.0,
        ),
        data=DataConfig(
            source="imagenet21k:imagenet21k",
            batch_size=4096,
            holdout=4 / 2048,
            crop="v2",
            resize="bilinear",
            eval_crop="pad32_floor",
            eval_resize="bilinear",
            flip=True,
        ),
        train=TrainConfig(
            epochs=60,
            steps_per_call=100,
            learning_rate=0.008,
            schedule="cosine",
            warmup_epochs=1.0,
            loss="sigmoid",
            weight_decay=1e-5,
            ema_decay=0.9999,
            precision="mixed_bfloat16",
        ),
    )


# V2 datasets.py `ImagenetFt`, from which its transfer sets differ in nothing but the pictures:
# whole pictures, a noise square, a constant rate of 0.001. The paper (Sec. 5.2, 5.3) has a cosine:
# --set=train.schedule=cosine. The code's pictures are (x - 127.5) / 127.5 here and (x - 128) / 128
# in pre-training; these recipes keep the latter.
FT_MODEL = ModelConfig(dropout_rate=1e-6, drop_connect_rate=0.2)
FT_DATA = DataConfig(
    batch_size=512,
    crop="none",
    resize="bilinear",
    eval_crop="squash",
    eval_resize="bilinear",
    flip=True,
    cutout=0.5,
    cutout_fill="noise",
)
FT_TRAIN = TrainConfig(
    epochs=15,
    min_steps=10_000,
    steps_per_call=100,
    learning_rate=0.0005,
    schedule="constant",
    warmup_epochs=1.0,
    label_smoothing=0.1,
    weight_decay=1e-5,
    ema_decay=0.9996,
    precision="mixed_bfloat16",
)


def _imagenet21k_ft1k(variant: str, size: int) -> Config:
    return Config(
        model=dataclasses.replace(
            FT_MODEL,
            variant=variant,
            image_size=VARIANTS[variant].resolution,
            weights="imagenet21k",
        ),
        data=dataclasses.replace(
            FT_DATA, source="imagenet:imagenet", holdout=20 / 1024, train_size=size
        ),
        train=FT_TRAIN,
    )


# fmt: off
RECIPES: dict[str, Config] = {
    # V1 Table 2 (top-1), V1 README.md "with AutoAugment"; hours re-measured   top-1   hours
    "imagenet-b0": _v1("efficientnet-b0"),                                   #  77.1   not reported
    "imagenet-b1": _v1("efficientnet-b1"),                                   #  79.1   not reported
    "imagenet-b2": _v1("efficientnet-b2"),                                   #  80.1   not reported
    "imagenet-b3": _v1("efficientnet-b3"),                                   #  81.6    10
    "imagenet-b4": _v1("efficientnet-b4"),                                   #  82.9    21
    "imagenet-b5": _v1("efficientnet-b5"),                                   #  83.6    43
    "imagenet-b6": _v1("efficientnet-b6"),                                   #  84.0    75
    "imagenet-b7": _v1("efficientnet-b7"),                                   #  84.3   139
    # V1 README.md "with RandAugment": two operations of magnitude 17, 28
    # Hardware and hours: not reported.
    "imagenet-b5-randaugment": _v1_randaugment("efficientnet-b5", 17.0),     #  83.7
    "imagenet-b7-randaugment": _v1_randaugment("efficientnet-b7", 28.0),     #  84.7

    # V2 Table 6, last stage      px RandAug mixup dropout                 V2 Table 7:  top-1  hours
    "imagenet-v2-s-paper": _v2_paper("efficientnetv2-s", 300, 15.0, 0.0, 0.3),      #  83.9    7.1
    "imagenet-v2-m-paper": _v2_paper("efficientnetv2-m", 380, 20.0, 0.2, 0.4),      #  85.1   13
    # Mixup of L: 0.4 in every transcription of the paper's table, 0.5 in the released code.
    "imagenet-v2-l-paper": _v2_paper("efficientnetv2-l", 380, 25.0, 0.4, 0.5),      #  85.7   24
    # Hardware and hours of what the code does: not reported.
    # V2 effnetv2_configs.py: RandAugment, mixup and cutmix             V2 README.md:  top-1
    "imagenet-v2-s-released": _v2_released("efficientnetv2-s", 10.0, 0.0),          #  83.9
    "imagenet-v2-m-released": _v2_released("efficientnetv2-m", 15.0, 0.2),          #  85.2
    "imagenet-v2-l-released": _v2_released("efficientnetv2-l", 20.0, 0.5),          #  85.7
    # Hardware and hours of B0 to B3: not reported.
    # V2 Sec. 6.1, Table 11                               effnetv2_configs.py, README:  top-1
    "imagenet-v2-b0-paper": _v2_base_paper("efficientnetv2-b0"),                    #  78.7
    "imagenet-v2-b1-paper": _v2_base_paper("efficientnetv2-b1"),                    #  79.8
    "imagenet-v2-b2-paper": _v2_base_paper("efficientnetv2-b2"),                    #  80.5
    "imagenet-v2-b3-paper": _v2_base_paper("efficientnetv2-b3"),                    #  82.1
    "imagenet-v2-b0-released": _v2_base_released("efficientnetv2-b0"),              #  78.7
    "imagenet-v2-b1-released": _v2_base_released("efficientnetv2-b1"),              #  79.8
    "imagenet-v2-b2-released": _v2_base_released("efficientnetv2-b2"),              #  80.5
    "imagenet-v2-b3-released": _v2_base_released("efficientnetv2-b3"),              #  82.1

    # V2 Sec. 5.2: each within two days on 32 TPUv3 cores; judged by what follows.
    "imagenet21k-v2-b0": _imagenet21k("efficientnetv2-b0"),
    "imagenet21k-v2-b1": _imagenet21k("efficientnetv2-b1"),
    "imagenet21k-v2-b2": _imagenet21k("efficientnetv2-b2"),
    "imagenet21k-v2-b3": _imagenet21k("efficientnetv2-b3"),
    "imagenet21k-v2-s": _imagenet21k("efficientnetv2-s"),
    "imagenet21k-v2-m": _imagenet21k("efficientnetv2-m"),
    "imagenet21k-v2-l": _imagenet21k("efficientnetv2-l"),
    "imagenet21k-v2-xl": _imagenet21k("efficientnetv2-xl"),
    # Training sizes are the evaluation's, rounded down to 16 px (main.py).
    # Hours of B0 to B3 and XL: not reported.
    # V2 Sec. 5.2, V2 README.md; hours with pre-training, Table 7                top-1   hours
    "imagenet21k-ft1k-v2-b0": _imagenet21k_ft1k("efficientnetv2-b0", 224),   #  not reported
    "imagenet21k-ft1k-v2-b1": _imagenet21k_ft1k("efficientnetv2-b1", 240),   #  not reported
    "imagenet21k-ft1k-v2-b2": _imagenet21k_ft1k("efficientnetv2-b2", 256),   #  not reported
    "imagenet21k-ft1k-v2-b3": _imagenet21k_ft1k("efficientnetv2-b3", 288),   #  82.6 (timm)
    "imagenet21k-ft1k-v2-s": _imagenet21k_ft1k("efficientnetv2-s", 384),     #  84.9     9.0
    "imagenet21k-ft1k-v2-m": _imagenet21k_ft1k("efficientnetv2-m", 480),     #  86.2    15
    "imagenet21k-ft1k-v2-l": _imagenet21k_ft1k("efficientnetv2-l", 480),     #  86.9    26
    "imagenet21k-ft1k-v2-xl": _imagenet21k_ft1k("efficientnetv2-xl", 512),   #  87.2
}
# fmt: on
