"""Tables as plain text."""

from collections.abc import Collection, Sequence


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Pads the cells of a table, so that its columns stand below each other.

    Args:
        rows: cells, as many in each; the headings are one of them.
        right: places of the columns that are aligned to the right; the others are to the left.

    Returns:
        A line for each row.

    >>> print(align([("stage", "px"), ("1/2", "128"), ("2/2", "96")], right=[1]))
    stage   px
    1/2    128
    2/2     96
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
