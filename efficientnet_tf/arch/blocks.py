"""Stages of a network as typed rows, and the official string notation for them."""

import dataclasses
import re
from typing import Literal

Conv = Literal["mbconv", "fused"]

_TOKEN = re.compile(r"(se|[a-z]+?)(\d+(?:\.\d+)?)?$")
_REQUIRED = {"r": "repeats", "k": "kernel size", "s": "strides", "e": "expand ratio"}
_REQUIRED |= {"i": "input filters", "o": "output filters"}
_CONVS: dict[str, Conv] = {"0": "mbconv", "1": "fused"}


@dataclasses.dataclass(frozen=True)
class BlockArgs:
    """One stage: `repeats` blocks of the same kind, before width and depth are scaled.

    Attributes:
        conv: "mbconv" (1x1 expand, depthwise, 1x1 project) or "fused" (kxk expand, 1x1 project;
            a single kxk convolution where `expand_ratio` is 1; V2 Sec. 3.3).
        repeats: number of blocks.
        kernel_size: of the depthwise or fused convolution.
        strides: of the first block, 1 or 2; the others have 1.
        expand_ratio: inner filters over input filters.
        input_filters: nominal filters that enter the first block.
        output_filters: filters of every block's output.
        se_ratio: squeeze filters over block input filters, in [0, 1]; 0 for no squeeze-excite. A
            "fused" stage without expansion cannot have it.
        skip: whether blocks that keep their shape add their input.
    """

    conv: Conv
    repeats: int
    kernel_size: int
    strides: int
    expand_ratio: int
    input_filters: int
    output_filters: int
    se_ratio: float = 0.0
    skip: bool = True

    def __post_init__(self) -> None:
        if self.conv not in _CONVS.values():
            raise ValueError(f'conv must be "mbconv" or "fused". Received: conv={self.conv!r}')
        for name in (
            "repeats",
            "kernel_size",
            "strides",
            "expand_ratio",
            "input_filters",
            "output_filters",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1. Received: {name}={value!r}")
        if self.strides > 2:  # the levels of a network are powers of 2
            raise ValueError(f"strides must be 1 or 2. Received: strides={self.strides}")
        if self.conv == "fused" and self.expand_ratio == 1 and self.se_ratio:
            raise ValueError(
                "A fused stage has squeeze-excite only with expand_ratio > 1. Received:"
                f" se_ratio={self.se_ratio!r}, expand_ratio=1"
            )
        if not 0 <= self.se_ratio <= 1:
            raise ValueError(f"se_ratio must lie in [0, 1]. Received: se_ratio={self.se_ratio!r}")

    @classmethod
    def parse(cls, string: str) -> "BlockArgs":
        """Reads the official notation (V1 `efficientnet_builder.py`, V2 `effnetv2_configs.py`).

        >>> BlockArgs.parse("r2_k3_s22_e6_i16_o24_se0.25").output_filters
        24

        Args:
            string: tokens joined by "_": r(epeats), k(ernel), s(trides, "2" or "22"), e(xpand),
                i(nput), o(utput), and optionally se(ratio), c(onv: 0 MBConv, 1 fused), noskip.

        Raises:
            ValueError: names the token that is wrong, repeated or missing.
        """
        values: dict[str, str] = {}
        skip = True
        for token in string.split("_"):
            if token == "noskip":
                skip = False
                continue
            match = _TOKEN.match(token)
            key, value = match.groups() if match else (token, None)
            if value is None or key not in (*_REQUIRED, "se", "c"):
                raise ValueError(
                    f"Token {token!r} of block string {string!r} is not known. Expected r, k, s, e,"
                    ' i, o, se or c followed by a number, or "noskip".'
                )
            if key in values:
                raise ValueError(f"Token {token!r} of block string {string!r} repeats {key!r}.")
            if key == "se" and float(value) > 1:
                raise ValueError(f"Token {token!r} of block string {string!r} must lie in [0, 1].")
            if key in _REQUIRED and ("." in value or int(value) < 1):
                raise ValueError(
                    f"Token {token!r} of block string {string!r} must be an integer >= 1."
                )
            values[key] = value
        for key, meaning in _REQUIRED.items():
            if key not in values:
                raise ValueError(f"Block string {string!r} has no token {key!r} ({meaning}).")
        if values.get("c", "0") not in _CONVS:
            raise ValueError(
                f"Token 'c{values['c']}' of block string {string!r} is not supported. Expected c0"
                " (MBConv) or c1 (fused)."
            )
        strides = values["s"]
        if strides not in ("1", "2", "11", "22"):
            raise ValueError(
                f"Token 's{strides}' of block string {string!r} must give strides of 1 or 2, equal"
                ' for height and width, such as "s2" or "s22".'
            )
        return cls(
            conv=_CONVS[values.get("c", "0")],
            repeats=int(values["r"]),
            kernel_size=int(values["k"]),
            strides=int(strides[0]),
            expand_ratio=int(values["e"]),
            input_filters=int(values["i"]),
            output_filters=int(values["o"]),
            se_ratio=float(values.get("se", 0)),
            skip=skip,
        )

    def encode(self) -> str:
        """Writes the official notation, strides once per dimension as V1 does.

        >>> BlockArgs("fused", 2, 3, 2, 4, 16, 32).encode()
        'r2_k3_s22_e4_i16_o32_c1'
        """
        tokens = [
            f"r{self.repeats}",
            f"k{self.kernel_size}",
            f"s{self.strides}{self.strides}",
            f"e{self.expand_ratio}",
            f"i{self.input_filters}",
            f"o{self.output_filters}",
        ]
        if self.se_ratio:
            tokens.append(f"se{self.se_ratio}")
        if self.conv == "fused":
            tokens.append("c1")
        if not self.skip:
            tokens.append("noskip")
        return "_".join(tokens)
