import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image, ImageFont

from dipp_ray.errors import UserError
from dipp_ray.reporting.axes import decades, power_label, tick_labels, ticks
from dipp_ray.reporting.chart import Series, chart, panels, smooth
from dipp_ray.reporting.findings import findings
from dipp_ray.reporting.grid import save_grid
from dipp_ray.reporting.metrics import MetricsLog
from dipp_ray.reporting.report import write_report
from dipp_ray.reporting.samples import spread_over, step_of
from dipp_ray.reporting.thumbnails import BYTES, SIDE

CONFIG = {
    "run": {"name": "digits", "steps": 60, "seed": 0},
    "model": {"teacher": "models/teacher", "generator": None},
    "data": {"batch_size": 64, "micro_batches": 2},
    "objective": {"reward_scale": 10.0, "order": "strict"},
    "generator_optim": {"lr": 1e-4, "grad_clip": 10.0},
    "reward": {"terms": [{"name": "preference", "weight": 1.0}, {"name": "gold", "held_out": True}]},
}
EVALUATION = {
    "prompts": 90,
    "samples": 1440,
    "models": {
        "base": {"gold": -1.24, "proxy": 6.8, "worse": 1.0, "fid": 1.08},
        "aligned": {"gold": -0.81, "proxy": 6.9, "worse": 1.2, "fid": 5.08},
        "teacher": {"gold": None},
    },
    "metrics": {
        "gold": {"label": "Gold <reward>", "better": "higher", "unit": ""},
        "proxy": {"label": "Proxy", "better": "higher", "unit": ""},
        "worse": {"label": "Blur", "better": "lower", "unit": ""},
        "fid": {"label": "Fréchet distance", "better": "lower", "unit": ""},
    },
    "within": {"base": {"gold": 0.032, "proxy": 0.2}, "aligned": {"gold": 0.041, "proxy": 0.3}},
    "difference": {
        "gold": {"mean": 0.43, "within": 0.021},
        "proxy": {"mean": 0.1, "within": 0.1001},
        "worse": {"mean": 0.2, "within": 0.1},
    },
    "made": {"base": "one step", "aligned": "one step", "teacher": "25 steps, guidance 1.5"},
    "grid": None,
}


def run_folder(tmp_path, steps, config=CONFIG):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with MetricsLog(tmp_path) as log:
        for step in range(1, steps + 1):
            values = {"reward": 6.8 + step / 40, "grad_norm/generator": 1.0, "grad_norm/score": 2.0}
            if step % 10 == 0:
                values["held_out/gold"] = -1.0 - abs(step - 30) / 100
            log.write(step, values | ({"best_step": 30} if step == 30 else {}))
    for step in (0, steps):
        save_grid(torch.rand(4, 3, 8, 8), tmp_path / "samples" / f"step_{step:06}.png", 2)
    return tmp_path


class Page(HTMLParser):
    """Collects tags; fails where the tags do not nest."""

    VOID = ("meta", "img", "path", "circle", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def page_of(folder):
    text = write_report(folder).read_text()
    return text, Page(text)


def test_the_report_needs_nothing_beside_itself(tmp_path):
    folder = run_folder(tmp_path, 60)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    text, page = page_of(folder)
    assert not re.search(r"https?://", text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2 and all(picture.startswith("data:image/png;base64,") for picture in pictures)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["samples/step_000000.png", "samples/step_000060.png"] and all(
        (folder / link).is_file() for link in links
    )
    assert "url(" not in text and "@import" not in text
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for tag, a in page.tags if tag == "svg")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def pictures_of(page):
    """(media type, picture) of each <img> of a page."""
    for tag, attributes in page.tags:
        if tag == "img":
            kind, data = attributes["src"].removeprefix("data:").split(";base64,")
            yield kind, base64.b64decode(data)


def test_a_long_run_of_large_pictures_makes_no_large_page(tmp_path):
    """41 grids of four noisy pictures of 256 pixels: 30 MB of PNG, of which the page shows ten, reduced."""
    folder = run_folder(tmp_path, 20)
    whole = save_grid(torch.rand(4, 3, 256, 256), folder / "samples" / "step_000000.png", 2)
    for step in range(1, 41):
        os.link(whole, folder / "samples" / f"step_{step * 50:06}.png")
    (folder / "samples" / "step_000020.png").unlink()
    text, page = page_of(folder)
    assert len(text) < 2.2e6
    pictures = list(pictures_of(page))
    assert len(pictures) == 10 and {kind for kind, _ in pictures} == {"image/webp"}
    assert all(len(content) <= BYTES for _, content in pictures)
    assert max(Image.open(io.BytesIO(pictures[0][1])).size) <= SIDE
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert sorted(links) == [f"samples/step_{step * 50:06}.png" for step in range(41)]  # each once, shown or not
    assert "8 of 39 between them" in text


def test_a_few_grids_between_are_evenly_spread():
    grids = [Path(f"step_{step:06}.png") for step in range(100)]
    assert [step_of(grid) for grid in spread_over(grids, 4)] == [12, 37, 62, 87]
    assert spread_over(grids[:8], 8) == grids[:8] and spread_over(grids[:9], 8) != grids[:9]


def test_headline_figures_break_where_they_may(tmp_path):
    """At 600 pixels of width: no figure is wider than the narrowest column, and each breaks at its arrow."""
    folder = run_folder(tmp_path, 60)
    with MetricsLog(folder) as log:
        log.write(61, {"held_out/gold": -12345.678, "from_start/gold": -12344.4, "from_start_within/gold": 0.031})
    text, _ = page_of(folder)
    style = text.partition("</style>")[0]
    assert all("white-space" not in rule for rule in re.findall(r"\.facts dd \{.*?\}", style))
    rem = float(re.search(r"\.facts \{[^}]*minmax\(min\(100%, (\S+)rem\)", style)[1])
    facts = re.search(r'<dl class="facts">(.*?)</dl>', text, re.DOTALL)[1]
    font = ImageFont.load_default(1.3 * 16)
    pieces = re.findall(r"<span>(.*?)</span>", facts)
    assert "−12,346" in pieces and "−1.20 →" in pieces
    assert max(font.getlength(piece) for piece in pieces) < rem * 16
    assert "−12,344.400 ± 0.031" in facts


def test_texts_from_outside_stay_texts(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    config = CONFIG | {"run": {"name": evil, "steps": 60}, "model": {"teacher": evil}}
    folder = run_folder(tmp_path, 20, config)
    with MetricsLog(folder) as log:
        log.write(21, {f"reward/{evil}": 1.0, "reward/b": 1.0, f"held_out/{evil}": float("nan")})
    evaluation = EVALUATION | {"models": {evil: {evil: 1.0}, "base": {}}, "metrics": {}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "README.md").write_text(evil + " $title")
    text, page = page_of(folder)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "&lt;script&gt;" in text and "$title" in text


def test_the_table_says_what_is_better_and_what_is_noise(tmp_path):
    folder = run_folder(tmp_path, 20)
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    text, _ = page_of(folder)
    _, gold, proxy, blur, fid = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    assert re.search(
        r'−1\.24 <span class="unit">± 0\.03</span>.*−0\.81.*class="good">\+0\.430 ± 0\.021 <span>better', gold
    )
    assert "not finite" in gold and "Gold &lt;reward&gt;" in gold
    assert "<td>+0.10 ± 0.10</td>" in proxy  # within its interval: neither, whatever it looks like
    assert 'class="worse">+0.20 ± 0.10 <span>worse' in blur
    assert "<td>+4.00</td>" in fid  # nobody measured how certain it is
    assert "Base: one step; aligned: one step; teacher: 25 steps, guidance 1.5." in text


def test_a_distillation_stands_beside_its_base_under_its_own_name(tmp_path):
    folder = run_folder(tmp_path, 20)
    named = json.loads(json.dumps(EVALUATION).replace('"aligned"', '"distilled"'))
    (folder / "evaluation.json").write_text(json.dumps(named))
    heads = re.findall(r'<th scope="col">(.*?)</th>', page_of(folder)[0])
    assert heads == ["Measure", "Base", "Distilled", "Difference", "Teacher"]


def test_an_evaluation_of_before_intervals_is_shown(tmp_path):
    folder = run_folder(tmp_path, 20)
    old = {key: value for key, value in EVALUATION.items() if key not in ("within", "difference")}
    (folder / "evaluation.json").write_text(json.dumps(old))
    assert "<td>+0.43</td>" in page_of(folder)[0]


def test_little_is_enough(tmp_path):
    page_of(tmp_path)  # an empty folder
    folder = run_folder(tmp_path, 1)
    text, _ = page_of(folder)
    assert "Evaluation" not in text and "Trained reward from" not in text
    assert 'aria-label="Trained reward: reward 6.83 at step 1"' in text


def test_damaged_input_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "none")
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json cannot be read"):
        write_report(tmp_path)


def records(held_out, reward, within=0.01):
    """A record a step, with what a look says of its difference from the best before it."""
    rows = []
    for step, (h, r) in enumerate(zip(held_out, reward, strict=True)):
        best = max(range(step), key=lambda i: held_out[i], default=None)
        seen = {} if best is None else {
            "from_best/gold": h - held_out[best], "from_best_within/gold": within, "from_best_step/gold": best
        }  # fmt: skip
        rows.append({"step": step, "reward": r, "held_out/gold": h} | seen)
    return rows


def test_over_optimisation_is_a_falling_held_out_reward_under_a_rising_reward():
    rising, falling = [float(i) for i in range(40)], [-float(i) for i in range(40)]
    peak = [-abs(i - 20) / 10 for i in range(40)]
    (sentence,) = findings(records(peak, rising), {})
    assert "Over-optimisation" in sentence and "best at step 20 (0)" in sentence and "−1.90 at step 39" in sentence
    assert "(−1.900 ± 0.010, 95 % interval" in sentence and "Take the generator of step 20" in sentence
    assert findings(records(rising, rising), {}) == []
    assert findings(records(peak, falling), {}) == []
    (sentence,) = findings(records(falling, rising), {})
    assert "best at the start (0)" in sentence and sentence.endswith("Train with a smaller objective.reward_scale.")


def test_noise_is_no_over_optimisation():
    """16 samples whose reward goes from -5.661 to -5.664, and a trained reward that does not rise beyond its noise."""
    rising, noise = [float(i) for i in range(40)], [6.0, 6.4, 6.1, 6.3] * 10
    down = [-5.661 - i * 1e-4 for i in range(40)]
    assert findings(records(down, rising, within=0.05), {}) == []
    (sentence,) = findings(records(down, rising, within=1e-4), {})
    assert "(−5.6610) and has fallen to −5.6649" in sentence  # enough digits to see it
    assert findings(records(down, noise, within=1e-4), {}) == []
    without = [{key: value for key, value in row.items() if "from_" not in key} for row in records(down, rising)]
    assert findings(without, {}) == []  # records of before say nothing of their noise


def test_what_is_not_finite_or_clipped_or_unfinished_is_said():
    rows = [{"step": step, "grad_norm/score": None if step == 3 else 12.0} for step in range(1, 6)]
    said = findings(rows, {"score_optim": {"grad_clip": 10.0}, "run": {"steps": 8}})
    assert said[0] == "grad_norm/score was not finite once, first at step 3."
    assert "clipped (norm above 10) in 100%" in said[1] and said[2] == "The run stands at step 5 of 8."


def test_curves():
    assert ticks(0.13, 0.97, 5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(1, 4, 5, whole=True) == [1, 2, 3, 4]
    assert tick_labels([0.0, 5e-5, 1e-4]) == ["0", "0.5e−4", "1e−4"]
    assert tick_labels([-1.0, -0.5]) == ["−1.0", "−0.5"]
    line = [(step, 3.0 + 2.0 * step) for step in range(90)]
    assert dict(smooth(line)[10:80]) == pytest.approx(dict(line[10:80]))  # a straight line keeps its place
    assert decades(-0.6, 3.1) == [1, 10, 100, 1000] and len(decades(-9, 9)) <= 7
    assert [power_label(value) for value in (0.01, 1000.0, 1e7)] == ["0.01", "1,000", "1e7"]
    with_gap = chart("T", "", [Series("a", [(1, 1.0), (2, None), (3, 2.0)])])
    assert with_gap.count('class="line s0"') == 2 and "not finite, step 2" in with_gap
    assert chart("T", "", [Series("a", [])]) == ""


def heights(figure, style):
    """Pixels of height that the line of a style spans in a chart."""
    ys = [
        float(y)
        for path in re.findall(rf'class="line {style}" d="M([^"]*)"', figure)
        for _, y in map(str.split, path.split("L"))
    ]
    return max(ys) - min(ys)


def test_a_small_norm_is_seen_beside_a_large_one():
    small = Series("generator", [(step, 0.3 + 0.3 * (step > 5)) for step in range(11)])
    large = Series("score", [(step, 1200.0 + 1200 * (step > 5)) for step in range(11)])
    figure = panels("Gradient norms", "before clipping", [small, large])
    assert figure.count("<figure") == 1 and "before clipping, log scale" in figure
    moved, as_far = heights(figure, "s0"), heights(figure, "s1")
    assert moved > 10 and moved == pytest.approx(as_far, abs=0.2)  # both double
    # Of either sign: a chart each.
    negative = Series("loss", [(step, -0.3 - 0.3 * (step > 5)) for step in range(11)])
    both = panels("Terms", "", [negative, large])
    assert both.count("<figure") == 2 and "Terms, loss" in both and heights(both.split("</figure>")[0], "s0") > 100
    alike = panels("Norms", "", [small, Series("b", [(0, 1.0), (10, 2.0)])])
    assert alike.count("<figure") == 1 and "log" not in alike


def test_many_values_that_are_not_finite_are_few_crosses():
    figure = chart("T", "", [Series("a", [(0, 1.0), *((step, None) for step in range(1, 5000))])])
    assert figure.count('class="bad"') <= 100
