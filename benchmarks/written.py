"""`python -m benchmarks.written`: the recorded result into `README.md` and `SCALE.md`.

Figures in those pages stand between two marks and are written by this alone, out of
`results/recorded.json`; a test compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from benchmarks import goals, scale

HERE = Path(__file__).parent
RESULT = HERE / "results" / "recorded.json"
BEGIN, END = "<!-- written by python -m benchmarks.written -->", "<!-- end -->"
RIVALS = ("until ended/s", "CPU us/record", "peak MiB", "limit", "state", "dedup", "resume")


def pages(result: dict[str, Any]) -> dict[Path, str]:
    """Each page as it has to be."""
    cases = result["cases"]
    parts = {
        HERE.parent / "README.md": "\n".join([_machine(result), _goals(cases), _rivals(cases)]),
        HERE / "SCALE.md": scale.page(cases),
    }
    return {file: filled(file.read_text(encoding="utf-8"), part) for file, part in parts.items()}


def filled(text: str, part: str) -> str:
    """The page with what stands between the marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{part}\n{END}{after}"


def _machine(result: dict[str, Any]) -> str:
    here = result["machine"]
    loads = [case["load_before"] for case in result["cases"].values()]
    busy = (
        " It did other work beside it: times say little, ratios by processor time a little more."
        if max(loads) > int(here["cores"])
        else ""
    )
    return (
        f"Recorded on {result['at'][:10]}, {here['cores']} x {here['cpu']}, Python"
        f" {here['python']}, {here['system']}; load of the machine before each case"
        f" {min(loads):g} to {max(loads):g}.{busy}\n"
    )


def _goals(cases: dict[str, Any]) -> str:
    return goals.markdown(goals.summary(goals.verdicts(cases)))


def _rivals(cases: dict[str, Any]) -> str:
    lines = [["", "records/s, until ended", *RIVALS[1:]]]
    for row in cases["rivals"]["rows"]:
        values = row["values"]
        if "until ended/s" in values:
            lines.append([row["name"], *(_cell(values.get(name, "")) for name in RIVALS)])
        elif "not to be had" in values:
            lines.append([row["name"], values["not to be had"], *[""] * (len(RIVALS) - 1)])
    return goals.markdown(lines)


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    for file, text in pages(msgspec.json.decode(RESULT.read_bytes())).items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
