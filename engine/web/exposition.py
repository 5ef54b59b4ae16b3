"""Prometheus's text format, version 0.0.4: families of samples in, text out.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Family(msgspec.Struct):
    """A metric with its samples; one without samples is not shown."""

    name: str
    kind: str  # "gauge" or "counter"
    text: str
    samples: list[tuple[dict[str, str], float]] = []

    def add(self, value: float, **labels: str) -> None:
        """A sample. Labels that are empty are left out, which means the same."""
        self.samples.append(({key: text for key, text in labels.items() if text}, value))


def render(families: Iterable[Family]) -> str:
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {family.text.translate(_HELP)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += (f"{family.name}{_labels(labels)} {_number(v)}" for labels, v in family.samples)
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{text.translate(_LABEL)}"' for key, text in labels.items()) + "}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    return repr(value)
