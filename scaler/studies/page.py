"""The page of a scaling study with its pictures inside: no other file, no network, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scaler.core.text import counted
from scaler.studies import words
from scaler.studies.curves import Study
from scaler.studies.pictures import Picture
from scaler.studies.words import SERIES

STYLE = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
.about, figcaption, .quiet { color: #555; font-size: .9rem; }
.series { border: 1px solid #ccc; border-left: 5px solid #0072B2; border-radius: 4px; padding: .8rem 1.1rem;
  margin: 1rem 0; }
.series h2 { border: 0; margin: 0; font-size: 1rem; color: #555; padding: 0; }
.series p.lead { font-size: 1.2rem; font-weight: 600; margin: .2rem 0 .8rem; line-height: 1.35; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .3rem 1rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
figure { margin: 1.2rem 0; } figure img { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .76rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .35rem; border-bottom: 1px solid #ddd; text-align: right; }
th { vertical-align: bottom; border-bottom: 2px solid #888; }
th:first-child, td:first-child, td.note { text-align: left; }
tr.chosen { background: #e3effa; } tr.chosen td:first-child { font-weight: 600; }
td.note { font-style: italic; } tr.failed td.note { color: #a33a00; }
.facts { font-size: .85rem; }
.facts td, .facts th { text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
.points td { white-space: nowrap; } .points td.note { white-space: normal; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, .series, tr { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 8px; } }
"""


def page(study: Study, title: str, pictures: Sequence[Picture], folder: Path) -> str:
    """The page as HTML; `folder` has the pictures."""
    rows = study.rows
    states = [row.state for row in rows]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("measured", "failed", "not run") if state in states
    )
    days = sorted({some.started[:10] for _, some, _ in study.measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="about">{_text(counted(len(rows), "point"))}: {_text(counts)}. {_text(when)}.</p>',
    ]
    for series, name in SERIES.items():
        curve = study.leading(series)
        if curve is not None:
            body.append(f'<section class="series"><h2>{_text(name)}</h2>')
            body.append(f'<p class="lead">{_text(words.headline(study, curve))}</p><dl>')
            body += [
                f"<dt>{_text(what)}</dt><dd>{_text(sentence)}</dd>"
                for what, sentence in words.conclusions(study, curve)
            ]
            body.append("</dl></section>")
    more = words.others(study)
    if foretold := words.prediction(study):
        body.append(f"<h3>How far the prediction was right</h3><p>{_text(foretold)}</p>")
    if more:
        body.append(f"<h3>Other settings</h3>{_list(more)}")
    if study.remarks:
        body.append(f"<h3>To know of these figures</h3>{_list(study.remarks)}")
    body.append("<h2>Pictures</h2>")
    for picture in pictures:
        data = base64.b64encode((folder / picture.name).read_bytes()).decode("ascii")
        body.append(
            f'<figure><h3>{_text(picture.title)}</h3><img alt="{_text(picture.title)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{_text(picture.text)}</figcaption></figure>'
        )
    body += ["<h2>All points</h2>", *_table(study), "<h2>How it was measured</h2>", _facts(_how(study))]
    if study.prediction is not None:
        body += ["<h3>The hardware of the prediction</h3>", _facts(_hardware(study))]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text)


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts)
    return f'<table class="facts">{lines}</table>'


def _table(study: Study) -> list[str]:
    columns = words.head(study)
    found = []
    for curve in study.curves:
        found.append(f"<h3>{_text(curve.series)} scaling, {_text(words.setting(curve.rows[0].point))}</h3>")
        found.append('<div class="wide"><table class="points"><thead><tr>')
        found.append("".join(f"<th>{_text(name)}</th>" for name in columns[1:]) + "</tr></thead><tbody>")
        for row, line in zip(curve.rows, words.lines(study, curve), strict=True):
            cells = [f"<td>{_text(cell)}</td>" for cell in line.cells[1:]]
            if line.note:
                end = len(words.HEAD) - 1
                cells[3:end] = [f'<td class="note" colspan="{end - 3}">{_text(line.note)}</td>']
            kind = "chosen" if line.chosen else row.state.replace(" ", "-")
            found.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
        found.append("</tbody></table></div>")
    found.append(
        '<p class="quiet">Marked: the fastest micro-batch on so many ranks, which is on the curve. Speed-up and '
        "efficiency are against the curve's first point; communication is waited for in steps of its own; node-hours "
        "are those of the recipe's whole training, without evaluations, saves and failures; memory is a device's, or "
        "on CPUs what comes on top of the process.</p>"
    )
    return found


def _how(study: Study) -> list[tuple[str, str]]:
    """What the figures hang on."""
    measured = [some for _, some, _ in study.measured]
    hosts = sorted({host for some in measured for host in some.hosts})
    versions = sorted({f"{name} {version}" for some in measured for name, version in some.versions.items() if version})
    return [
        ("recipe", study.recipe.name),
        ("hosts", f"{len(hosts)}: {', '.join(hosts)}"),
        ("ranks are on", _either({"CPUs" if some.device == "cpu" else "GPUs" for some in measured})),
        ("precision", _either({some.precision for some in measured})),
        ("commit", _either({some.commit or "unknown" for some in measured})),
        ("versions", ", ".join(versions)),
        ("steps of warm-up", _either({some.warmup for some in measured})),
        ("steps measured", _either({figures.steps for _, _, figures in study.measured})),
        ("tokens of a row", f"{study.tokens_per_row:,.1f} on average, padding left out"),
        ("begun", f"{min(some.started for some in measured)} to {max(some.started for some in measured)}"),
        ("a step", "takes as long as its slowest rank; medians and quartiles are those of the measured steps"),
        ("communication", "of the rank with the least, as the others also wait for the last to come"),
        ("slowest rank", "by the median of its own work, as a multiple of the median rank's"),
    ]


def _hardware(study: Study) -> list[tuple[str, str]]:
    assert study.prediction is not None
    on = study.prediction.hardware
    facts = []
    for name, value in vars(on).items():
        if name in ("name", "measured", "devices"):
            continue
        source = "measured" if name in on.measured else "the maker's, or assumed"
        if isinstance(value, dict):
            said = ", ".join(f"{key} {number:.4g}" for key, number in value.items())
        else:
            said = "none" if value is None else f"{value:.4g}"
        facts.append((name, f"{said} ({source})"))
    return [("name", on.name), ("devices", "of each point, its ranks on a node"), *facts]


def _either(values: set[Any]) -> str:
    return " or ".join(str(value) for value in sorted(values))
