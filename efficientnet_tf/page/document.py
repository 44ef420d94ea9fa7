"""The frame of a page, tables, the environment, and writing."""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Mapping, Sequence

from efficientnet_tf import writing
from efficientnet_tf.paths import Remote
from efficientnet_tf.version import __version__

# Four hues that can be told apart by colour-blind readers, on white and on black (Okabe and Ito).
_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #66707f; --line: #d8dde4;
  --ground: #fff; --panel: #f6f7f9; --good: #009e73; --bad: #d55e00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #98a2b0; --line: #3a424e;
  --ground: #14181e; --panel: #1c222a; --c0: #56b4e9; --c1: #e69f00; --c2: #2bc79a; } }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--text);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.result { font-size: 1.15rem; }
.soft, figcaption, summary { color: var(--soft); }
.wide { overflow-x: auto; }
.charts, .pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
figure { margin: 0; background: var(--panel); border-radius: .5rem; padding: .6rem;
  overflow-wrap: anywhere; font-size: .85rem; }
figure img { width: 100%; border-radius: .3rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; }
td.bar { min-width: 8rem; width: 40%; }
td.bar div { background: var(--c0); height: .8rem; border-radius: .2rem; margin-top: .3rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin: 0 .3rem;
  vertical-align: -.05rem; }
"""


def document(title: str, result: str, sections: Sequence[str]) -> str:
    """Puts sections into a page.

    Args:
        title: plain text.
        result: the most important line, plain text.
        sections: HTML, in which all plain text is escaped already.
    """
    title, result = html.escape(title), html.escape(result)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f'<h1>{title}</h1>\n<p class="result">{result}</p>',
            *sections,
            "</body>\n</html>\n",
        ]
    )


def section(title: str, *parts: str) -> str:
    """Puts HTML parts under a heading, which is plain text."""
    return "\n".join([f"<section>\n<h2>{html.escape(title)}</h2>", *parts, "</section>"])


def folded(summary: str, *parts: str) -> str:
    """Hides HTML parts behind a line of plain text that opens them."""
    lines = [f"<details>\n<summary>{html.escape(summary)}</summary>", *parts, "</details>"]
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain values; see `shown` for numbers. A `Bar` is drawn."""
    lines = ['<div class="wide"><table>']
    if headers:
        cells = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    lines += ["<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</tbody></table></div>"])


class Bar(float):
    """A share in [0, 1] that a table shows as the length of a bar."""


def shown(value: object) -> str:
    """Plain text for a value: floats with 4 digits, "" for None and nan."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def mapping_table(values: Mapping[str, object]) -> str:
    """A table of names and values."""
    return table((), list(values.items()))


def _cell(value: object) -> str:
    if isinstance(value, Bar):
        width = 100 * min(max(value, 0.0), 1.0) if value == value else 0.0
        return f'<td class="bar"><div style="width:{width:.1f}%"></div></td>'
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kind = ' class="number"' if number else ""
    return f"<td{kind}>{html.escape(shown(value))}</td>"


def environment(replicas: int = 1) -> dict[str, object]:
    """What a model ran on: versions, machine and devices, for `run_page` and others.

    Args:
        replicas: of the distribution strategy.
    """
    import keras
    import tensorflow as tf

    devices = []
    for device in tf.config.list_physical_devices():
        details = {}
        if device.device_type == "GPU":
            details = tf.config.experimental.get_device_details(device)
        devices.append(details.get("device_name", device.device_type))
    return {
        "efficientnet_tf": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "processor cores": os.cpu_count(),
        "devices": devices,
        "replicas": replicas,
    }


def write(path: str | os.PathLike | Remote, text: str) -> None:
    """Writes a page under another name, then renames: what is there is always whole."""
    with writing.whole(path) as temporary:
        # A path in the settings need not be valid UTF-8.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
