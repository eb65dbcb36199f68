"""The run's report: one HTML file of two MB or so, which reads without anything beside it and links whole pictures."""

import json
import time
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

import yaml

from dipp_ray.errors import UserError
from dipp_ray.reporting.chart import Series, chart, panels, series
from dipp_ray.reporting.differences import Difference, apart, signed
from dipp_ray.reporting.events import read_events
from dipp_ray.reporting.findings import findings, held_out_keys
from dipp_ray.reporting.key_settings import key_settings
from dipp_ray.reporting.metrics import read_metrics
from dipp_ray.reporting.progress import duration, number
from dipp_ray.reporting.samples import samples_section
from dipp_ray.reporting.table import evaluation_table
from dipp_ray.reporting.thumbnails import image_link
from dipp_ray.storage.aside import whole_file


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html and return its path.

    It reads config.yaml, metrics.jsonl, samples/step_*.png, evaluation.json, pipeline/README.md; each may be missing.
    Raises UserError if the folder is missing, one of these files is damaged, or the report cannot be written.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise UserError(f"no run folder at {folder}")
    config_text = _text(folder / "config.yaml")
    config = _parsed(folder / "config.yaml", config_text, yaml.safe_load)
    evaluation = _parsed(folder / "evaluation.json", _text(folder / "evaluation.json"), json.loads)
    records = read_metrics(folder)
    body = [
        _facts(records),
        _notes(findings(records, config)),
        samples_section(folder, config),
        _evaluation(folder, evaluation),
        _curves(records, read_events(folder)),
        _events(read_events(folder)),
        _settings(config, config_text),
        _card(_text(folder / "pipeline" / "README.md")),
    ]
    template = Template(files("dipp_ray.reporting").joinpath("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(str((config.get("run") or {}).get("name") or folder.resolve().name)),
        lead=_lead(records, config),
        body="\n".join(part for part in body if part),
        version=version("dipp-ray"),
        written=time.strftime("%-d %B %Y, %H:%M"),
    )
    with whole_file(folder / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _lead(records: list[dict], config: dict) -> str:
    scale = (config.get("objective") or {}).get("reward_scale") or 0
    if scale:
        made = "A one-step text-to-image generator aligned with human preferences by Diff-Instruct++"
    else:
        made = "A one-step text-to-image generator distilled from its teacher by Diff-Instruct, without a reward"
    if not records:
        return f'{made}. <span class="soft">No step has been recorded yet.</span>'
    took = records[-1].get("time", 0) - records[0].get("time", 0)
    return f'{made}. <span class="soft">Step {records[-1]["step"]:,}, {duration(took)} after the first record.</span>'


def _facts(records: list[dict]) -> str:
    """The headline numbers: level over the first and the last records; of held-out rewards the change too."""
    held_out = [(key, f"Held-out reward, {key.partition('/')[2]}") for key in held_out_keys(records)]
    facts = []
    for key, name in [("reward", "Trained reward"), *held_out, ("score_gap", "Score gap")]:
        points = series(records, key, name).finite
        if points:
            span = 1 if key.startswith("held_out/") else max(1, min(10, len(points) // 5))
            first = sum(value for _, value in points[:span]) / span
            last = sum(value for _, value in points[-span:]) / span
            facts.append((name, _from_to(first, last, len(points)) + _change(records, key)))
    speeds = sorted(value for _, value in series(records, "images_per_second", "").finite)
    if speeds:
        facts.append(("Speed, median", f"{number(speeds[len(speeds) // 2])} <small>images/s</small>"))
    if best := series(records, "best_step", "").finite:
        step = int(best[-1][1])
        facts.append(("Best step by held-out reward", f"{step:,}" if step else "the start"))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>' if items else ""


def _from_to(first: float, last: float, count: int) -> str:
    """Two numbers that break between them, and nowhere else."""
    before, after = apart(first, last)
    return f"<span>{before} →</span> <span>{after}</span>" if count > 1 else f"<span>{after}</span>"


def _change(records: list[dict], key: str) -> str:
    """The last look's difference from the start, over the same samples, where it was recorded."""
    name = key.partition("/")[2]
    means, halves = (series(records, f"{what}/{name}", "").finite for what in ("from_start", "from_start_within"))
    if not name or not means or not halves:
        return ""
    return f" <small>{signed(Difference(means[-1][1], halves[-1][1]))}</small>"


def _notes(sentences: list[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section class="notes"><h2>To note</h2><ul>{items}</ul></section>'


def _evaluation(folder: Path, evaluation: dict) -> str:
    if not evaluation:
        return ""
    picture = ""
    grid = evaluation.get("grid")
    if grid and (folder / grid).is_file():
        image = image_link(folder / grid, grid, "Grid of samples of the evaluated models, side by side")
        picture = (
            '<details><summary>Samples of the evaluation</summary><figure class="samples">'
            f"<figcaption>The same noises and prompts for each model</figcaption>{image}</figure></details>"
        )
    return f"<section><h2>Evaluation</h2>{evaluation_table(evaluation)}{picture}</section>"


def _curves(records: list[dict], events: list[dict]) -> str:
    happened = [(event["step"], event["event"]) for event in events if event["event"] != "recovered"]
    faults = [(step, "") for step, _ in happened]  # named in one chart, and to be seen in all
    marks = faults + [(int(value), "best") for _, value in series(records, "best_step", "").finite][-1:]

    def lines(*keys: str) -> list[Series]:
        return [series(records, key, key.partition("/")[2].replace("_", " ") or key.replace("_", " ")) for key in keys]

    terms = sorted({key for record in records for key in record if key.startswith("reward/")})
    rewards = lines("reward", *(terms if len(terms) > 1 else []))
    charts = [
        panels("Trained reward", "mean of a batch", rewards, marks),
        *(chart(f"Held-out reward, {line.name}", "mean", [line], marks) for line in lines(*held_out_keys(records))),
        panels("Score gap", "RMS of x̂ψ − x̂ref", lines("score_gap"), marks),
        panels("Score matching loss", "", lines("score_loss"), faults),
        panels("Gradient norms", "before clipping", lines("grad_norm/generator", "grad_norm/score"), faults),
        panels("Pull on a sample", "mean norm", _pull(records), faults),
        chart("Speed", "images/s", lines("images_per_second"), happened),
    ]
    drawn = "".join(charts)
    note = (
        "The raw value is drawn behind its centred moving average; a cross marks a value that is not finite. An axis "
        "is logarithmic where values of one chart differ a hundredfold."
    )
    return (
        f'<section><h2>Curves</h2><p class="soft">{note}</p><div class="charts">{drawn}</div></section>'
        if drawn
        else ""
    )


def _events(events: list[dict]) -> str:
    """Faults, recoveries and moves, each with its reason, in the order in which they came."""
    items = "".join(
        f"<li>{time.strftime('%H:%M:%S', time.localtime(event['time']))}, step {event['step']:,}: "
        f"{escape(event['event'])}, {escape(event['reason'])}</li>"
        for event in events
    )
    return f"<section><h2>What happened</h2><ul>{items}</ul></section>" if items else ""


def _pull(records: list[dict]) -> list[Series]:
    return [series(records, "divergence_norm", "divergence"), series(records, "reward_gradient_norm", "reward")]


def _settings(config: dict, text: str) -> str:
    if not config:
        return ""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in key_settings(config)
    )
    whole = f'<details><summary>The whole configuration</summary><pre tabindex="0">{escape(text)}</pre></details>'
    return f'<section><h2>Settings</h2><dl class="settings">{rows}</dl>{whole}</section>'


def _card(text: str) -> str:
    if not text:
        return ""
    return (
        "<section><h2>The generator</h2><p>It lies in <code>pipeline/</code> of the run’s folder.</p>"
        f'<details><summary>Its model card</summary><pre tabindex="0">{escape(text)}</pre></details></section>'
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _parsed(path: Path, text: str, parse) -> dict:
    """The mapping in `text`; {} without text. Raises UserError that names `path`."""
    try:
        data = parse(text) if text.strip() else {}
    except (ValueError, yaml.YAMLError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{path} cannot be read: mend it or remove it, then write the report again")
    return data
