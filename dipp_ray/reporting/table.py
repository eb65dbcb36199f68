"""evaluation.json as a table: where the run began and ended side by side, with the difference and whether it is better.

A difference within its 95 % interval, or without one, is neither.
"""

import math
from html import escape

from dipp_ray.reporting.differences import BEGAN, ENDED, Difference, pair_of, signed

ARROWS = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better")}


def evaluation_table(evaluation: dict) -> str:
    """A <table> of `evaluation` (the mapping in evaluation.json); a value that is null or missing is said so."""
    models = evaluation.get("models") or {}
    metrics = evaluation.get("metrics") or {}
    pair = pair_of(models)
    order = [name for name in (BEGAN, *ENDED) if name in models]
    others = [name for name in models if name not in order]
    heads = [name.capitalize() for name in order] + (["Difference"] if pair else [])
    heads += [name.capitalize() for name in others]
    keys = list(metrics) or list(dict.fromkeys(key for values in models.values() for key in values))
    within = evaluation.get("within") or {}
    paired = {key: Difference(**value) for key, value in (evaluation.get("difference") or {}).items()}
    rows = []
    for key in keys:
        about = metrics.get(key) or {}
        halves = {name: (within.get(name) or {}).get(key) for name in models}
        decimals = _decimals([values.get(key) for values in models.values()], list(halves.values()))
        cells = [_cell(models[name], key, halves[name], decimals) for name in order]
        if pair and key in paired:
            cells.append(_paired(paired[key], about.get("better")))
        elif pair:
            cells.append(_difference(models[pair[0]].get(key), models[pair[1]].get(key), decimals))
        cells += [_cell(models[name], key, halves[name], decimals) for name in others]
        rows.append(f'<tr><th scope="row">{_label(key, about)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ["Measure", *heads])
    made = evaluation.get("made") or {}
    how = "; ".join(f"{escape(name)}: {escape(str(way))}" for name, way in made.items())
    how = f" {how[0].upper()}{how[1:]}." if how else ""
    return (
        f'<p class="soft" id="evaluated">{evaluation.get("samples", 0):,} samples of {evaluation.get("prompts", 0):,} '
        f"prompts, the same for each model.{how} ↑ higher is better, ↓ lower is better. ± is a 95 % interval; of the "
        "difference it is over the same samples, and what lies within it is noise. Where there is none, how certain a "
        "difference is was not measured.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Evaluation"><table aria-describedby="evaluated">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _label(key: str, about: dict) -> str:
    label = escape(str(about.get("label") or key))
    if about.get("better") in ARROWS:
        arrow, words = ARROWS[about["better"]]
        label += f' <span class="unit" title="{words}">{arrow}</span>'
    return label + (f' <span class="unit">{escape(str(about["unit"]))}</span>' if about.get("unit") else "")


def _decimals(values: list[float | None], halves: list[float | None]) -> int:
    """Decimals of a row: three significant digits of its largest value, and one of its smallest interval."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0)
    smallest = min((half for half in halves if half), default=0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    return max(decimals, min(decimals + 3, -math.floor(math.log10(smallest)))) if smallest else decimals


def _cell(values: dict, key: str, half: float | None, decimals: int) -> str:
    if key not in values:
        return "<td>–</td>"
    around = (
        f' <span class="unit">± {half:,.{decimals}f}</span>' if half is not None and values[key] is not None else ""
    )
    return f"<td>{_fixed(values[key], decimals)}{around}</td>"


def _fixed(value: float | None, decimals: int) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _difference(base: float | None, ended: float | None, decimals: int) -> str:
    """What the run ended with minus its base, signed, of a measure without an interval."""
    if base is None or ended is None or not math.isfinite(base) or not math.isfinite(ended):
        return "<td>–</td>"
    return f"<td>{f'{ended - base:+z,.{decimals}f}'.replace('-', chr(0x2212))}</td>"


def _paired(difference: Difference, better: str | None) -> str:
    """The difference with its interval, and a word for those who do not see the colour."""
    text = signed(difference)
    if better not in ARROWS or not difference.clear:
        return f"<td>{text}</td>"
    gained = difference.rises == (better == "higher")
    return f'<td class="{"good" if gained else "worse"}">{text} <span>{"better" if gained else "worse"}</span></td>'
