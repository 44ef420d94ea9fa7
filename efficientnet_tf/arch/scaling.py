"""From a variant to its blocks: the only place where width, depth and ramps are applied."""

import dataclasses
import difflib
import math
import os

from efficientnet_tf.arch import files
from efficientnet_tf.arch.blocks import Conv
from efficientnet_tf.arch.tables import ABLATIONS, VARIANTS, Variant


@dataclasses.dataclass(frozen=True)
class Block:
    """One block after scaling, with everything that the builder and the profiler need.

    Attributes:
        name: "block2a": stage counted from 1, place in the stage in letters (a … z, aa, ab, …).
        stage: counted from 1.
        conv: "mbconv" or "fused".
        kernel_size: of the depthwise or fused convolution.
        strides: of the same convolution.
        expand_ratio: inner filters over input filters; 1 means that there is no expansion.
        input_filters: channels that really arrive.
        expanded_filters: inner channels.
        output_filters: channels that leave.
        se_filters: squeeze-excite bottleneck; 0 for none.
        skip: whether the input is added to the output.
        drop_rate: probability of dropping the block's branch for an example; 0 where there is no
            skip.
    """

    name: str
    stage: int
    conv: Conv
    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    expanded_filters: int
    output_filters: int
    se_filters: int
    skip: bool
    drop_rate: float


@dataclasses.dataclass(frozen=True)
class Network:
    """A resolved network: the variant it comes from and its flat list of blocks."""

    variant: Variant
    stem_filters: int
    blocks: tuple[Block, ...]
    head_filters: int

    @property
    def levels(self) -> dict[int, int]:
        """Level to index of its last block: level n is the last output at stride 2**n."""
        levels: dict[int, int] = {}
        level = 1
        for index, block in enumerate(self.blocks):
            level += int(math.log2(block.strides))
            levels[level] = index
        return levels


def find(variant: str | os.PathLike | Variant) -> Variant:
    """Returns the variant of a name or a file; a `Variant` is returned as it is.

    Args:
        variant: a name in `VARIANTS` or `ABLATIONS`, the path of a file that `files.write` wrote,
            or a `Variant`.

    Raises:
        ValueError: an unknown name, for which one is suggested, a file that holds no variant, or
            something else.
        OSError: a file that cannot be read.
    """
    if isinstance(variant, Variant):
        return variant
    if files.is_path(variant):
        return files.read(variant)
    if not isinstance(variant, str):
        raise ValueError(
            "variant must be a name in VARIANTS or a Variant (of a Network: its `variant`), or the"
            " path of a .json file."
            f" Received: {type(variant).__name__}"
        )
    for rows in (VARIANTS, ABLATIONS):
        if variant in rows:
            return rows[variant]
    close = difflib.get_close_matches(variant.lower().replace("_", "-"), VARIANTS, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"No variant {variant!r}. {hint}Variants: {', '.join(VARIANTS)}.")


def round_filters(filters: int, width: float, divisor: int = 8, limit: float = 0.9) -> int:
    """Scales filters and rounds them to a multiple of `divisor`.

    >>> round_filters(16, 1.2), round_filters(16, 1.2, limit=0.0)
    (24, 16)

    Args:
        filters: before scaling.
        width: multiplier.
        divisor: of the result, which is at least this.
        limit: a result below this share of the exact one is raised by one divisor (V1
            `efficientnet_model.py`; V2's code does not have this rule, which is limit 0).
    """
    exact = filters * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * exact else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Scales repeats and rounds up.

    >>> round_repeats(2, 1.1)
    3
    """
    return math.ceil(depth * repeats)


def letters(index: int) -> str:
    """Place of a block in its stage: a to z, then aa, ab and so on.

    >>> letters(0), letters(25), letters(26)
    ('a', 'z', 'aa')
    """
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = chr(ord("a") + digit) + name
    return name


def resolve(
    variant: str | os.PathLike | Variant,
    *,
    width: float | None = None,
    depth: float | None = None,
    drop_connect_rate: float | None = None,
) -> Network:
    """Applies width, depth, rounding and the drop-connect ramp to a variant.

    Args:
        variant: a name in `VARIANTS`, the path of a file (see `files`), or a `Variant`.
        width: instead of the variant's.
        depth: instead of the variant's.
        drop_connect_rate: instead of the variant's. Block i of N (counted from 0 over the scaled
            blocks) is dropped with `drop_connect_rate * i / N` (V1 `efficientnet_model.py`).

    Returns:
        The network, whose `variant` holds the values that were used.

    Raises:
        ValueError: unknown name, or a value out of range.
    """
    variant = find(variant)
    variant = dataclasses.replace(
        variant,
        width=variant.width if width is None else width,
        depth=variant.depth if depth is None else depth,
        drop_connect_rate=(
            variant.drop_connect_rate if drop_connect_rate is None else drop_connect_rate
        ),
    )

    def scaled(filters: int) -> int:
        return round_filters(
            filters, variant.width, variant.filters_divisor, variant.rounding_limit
        )

    stem, head = variant.stem_filters, variant.head_filters
    if variant.scale_stem_and_head:
        stem, head = scaled(stem), scaled(head)
    repeats = [_repeats(variant, stage) for stage in range(len(variant.blocks))]
    rates = [variant.drop_connect_rate * i / sum(repeats) for i in range(sum(repeats))]
    blocks: list[Block] = []
    filters = stem
    for stage, args in enumerate(variant.blocks):
        for place in range(repeats[stage]):
            strides = args.strides if place == 0 else 1
            nominal = scaled(args.input_filters if place == 0 else args.output_filters)
            expands = args.expand_ratio != 1
            output_filters = scaled(args.output_filters)
            skip = args.skip and strides == 1 and filters == output_filters
            squeeze = max(1, int(filters * args.se_ratio)) if args.se_ratio else 0
            blocks.append(
                Block(
                    name=f"block{stage + 1}{letters(place)}",
                    stage=stage + 1,
                    conv=args.conv,
                    kernel_size=args.kernel_size,
                    strides=strides,
                    expand_ratio=args.expand_ratio,
                    # The channels that really arrive can differ from the table's input filters:
                    # Lite and EdgeTPU have a stem of 32 where the table says otherwise. As in the
                    # released code, an expansion is a multiple of the table's.
                    input_filters=filters,
                    expanded_filters=nominal * args.expand_ratio if expands else filters,
                    output_filters=output_filters,
                    se_filters=squeeze if variant.use_se else 0,
                    skip=skip,
                    drop_rate=rates[len(blocks)] if skip else 0.0,
                )
            )
            filters = output_filters
    return Network(variant, stem, tuple(blocks), head)


def _repeats(variant: Variant, stage: int) -> int:
    args = variant.blocks[stage]
    outer = stage in (0, len(variant.blocks) - 1)
    if outer and not variant.scale_outer_repeats:
        return args.repeats
    return round_repeats(args.repeats, variant.depth)
