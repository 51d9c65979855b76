"""Findings from what was measured, or saved: a function for each kind, with the limits that it goes by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from capalloc.results.allocation import worded
from capalloc.results.audit_findings import Finding, Level, by_weight
from capalloc.results.base import words_for
from capalloc.results.evidence import NO_SHARE, Evidence
from capalloc.results.regions import named_parts, parts_each
from capalloc.results.scaling import FAR_RATE, FAR_TOTAL, Scaling

#: How the note on inputs that never vary begins, after their number.
STILL = re.compile(r"\d+ inputs? never var")

#: Use of a layer's parameters, with two standard errors, below which it is named.
LOW_USE = 0.5
#: Share of a network's parameters below which it matters little what a layer does with its own.
SMALL = 0.01
#: Share of a layer's units that are dead above which training has lost it.
MOSTLY_DEAD = 0.5
#: Directions over channels up to which a layer could be narrower.
NARROWER = 0.75
#: What moves the share of a region, by an axis of its map.
MOVED = {
    "column": "; padding, stride and pooling move it",
    "position": "; padding, stride and pooling move it",
    "step": "; a recurrence forgets",
}
#: An input or region is named where it gets less than this share of the mean, or more than its inverse.
LITTLE = 1 / 3
#: Change of the total from half of the examples to all beyond which it is not settled.
UNSETTLED = 0.05
#: Shares below it are shown as 0.00.
LEAST_SHOWN = 0.005
#: Distance to the measured map beyond which an answer is a rough one.
ROUGH = 0.05
#: Findings of one kind that are named one by one.
MOST_NAMED = 3


def findings(known: Evidence) -> list[Finding]:
    """Everything that the evidence shows."""
    kinds = (
        *(dead_units, low_use, unused_parameters, narrower, repeats, kernels),
        *(field_of_paths, few_inputs, regions, depth, unsettled),
    )
    return [found for kind in kinds for found in kind(known)]


def dead_units(known: Evidence) -> Iterator[Finding]:
    """Units that no path goes through on any example."""
    rows = known.layers[known.layers["dead"] > 0]
    for name, row, more in _largest(rows, rows["dead"] / rows["units"], "with dead units"):
        share = row["dead"] / row["units"]
        what = (
            f'layer "{name}": {row["dead"]:.0f} of {row["units"]:.0f} units {_are(row["dead"])} dead on these examples'
        )
        them, they = ("it", "it ever opens") if row["dead"] == 1 else ("them", "they ever open")
        do = f"remove {them}, or see with more examples whether {they}"
        if share == 1:
            what, do = f'layer "{name}": no path goes through it on these examples', "remove it, or give more examples"
            if row["channels"] == 0:
                what, do = f'layer "{name}": the model never calls it', "remove it, or use it"
        yield Finding(
            "serious" if share >= MOSTLY_DEAD else "worth a look",
            share * row["parameters"] / known.num_params,
            what + more,
            do,
            "how-to/prune.md",
            float(row["dead"]),
        )


def low_use(known: Evidence) -> Iterator[Finding]:
    """Layers whose parameters are mostly not independent."""
    # Parameters in no use are a finding of their own. Norms have no width, and share symmetries with what they follow.
    layers = known.layers.assign(in_use=known.in_use)
    layers = layers[(layers["use"] > NO_SHARE) & (layers["in_use"] > 0) & ~layers.index.isin(known.vectors)]
    part = layers["in_use"] / layers["parameters"]
    layers = layers.assign(use=layers["use"] / part, use_error=layers["use_error"] / part)
    most = layers["use"] + 2 * layers["use_error"].fillna(0) + (known.unknown + known.rising) / layers["in_use"]
    rows = layers[most < LOW_USE]
    for name, row, more in _largest(rows, rows["in_use"] - rows["capacity"], f"with a use below {LOW_USE}"):
        error = f" ± {row['use_error']:.3f}" if row["use_error"] > 0 else ""
        share = (row["in_use"] - row["capacity"]) / known.num_params
        whose, used = ("its", "") if row["in_use"] == row["parameters"] else ("the", "that paths use ")
        yield Finding(
            "worth a look" if share >= SMALL else "to know",
            share,
            f'layer "{name}": use {row["use"]:.2f}{error}, {row["capacity"]:,.0f} of {whose} {row["in_use"]:,.0f} '
            f"parameters {used}are independent{known.guide}{more}",
            "make it narrower, or drop what another layer does too",
            "how-to/wasted-layers.md",
            float(row["use"]),
            float(row["use_error"]) if row["use_error"] > 0 else None,
        )


def unused_parameters(known: Evidence) -> Iterator[Finding]:
    """Parameters that change nothing on these examples."""
    number = int((known.allocation.attrs if known.allocation else {}).get("unused_params") or 0)
    share = number / known.num_params
    if number:
        idle = known.idle[known.idle <= number].head(MOST_NAMED)
        named = [f"{name} ({count:,})" for name, count in idle.items()]
        where = f", most in {', '.join(named)}" if named else ""
        yield Finding(
            "worth a look" if share > ROUGH else "to know",
            share,
            f"{number:,} parameter{'s' * (number > 1)} ({share:.1%}) {_are(number)} in no use on these examples{where}",
            f"remove {'it' if number == 1 else 'them'}, or give more examples",
            "how-to/prune.md",
            float(number),
        )


def narrower(known: Evidence) -> Iterator[Finding]:
    """Layers that read channels which repeat one another."""
    layers = known.layers[~(known.layers["dead"] >= known.layers["units"])]  # those are a finding of their own
    directions = layers["directions"]
    rows = layers[(directions > 0) & (directions <= NARROWER * layers["channels"])]  # none: nothing varies
    spared = rows["parameters"] * (1 - rows["directions"] / rows["channels"])
    for name, row, more in _largest(rows, spared, "that read such channels"):
        spare = 1 - row["directions"] / row["channels"]
        yield Finding(
            "worth a look",
            spare * row["parameters"] / known.num_params,
            f'layer "{name}" reads {row["channels"]:.0f} channels, and {row["directions"]:.0f} directions hold 99 % of '
            f"their variance (a guide: each channel at variance 1){more}",
            f"the layers before it could be narrower by up to {spare:.0%}",
            "how-to/wasted-layers.md",
            float(row["directions"]),
        )


def repeats(known: Evidence) -> Iterator[Finding]:
    """Layers that read single channels twice."""
    for name, pairs in known.repeats.items():
        row = known.layers.loc[name]
        if row["directions"] <= NARROWER * row["channels"]:
            continue  # a finding of its own
        number = len(pairs)
        named = ", ".join(f"channel {one} is channel {other} again" for one, other in pairs[:MOST_NAMED])
        yield Finding(
            "worth a look",
            number / row["channels"] * row["parameters"] / known.num_params,
            f'layer "{name}" reads {number} channel{"s" * (number > 1)} twice: {named} (counted from 0, but for scale '
            f"and offset, on these examples){', and so on' * (number > MOST_NAMED)}",
            "one of each is enough: what reads one can take the weights of the other",
            "how-to/wasted-layers.md",
            float(number),
        )


def kernels(known: Evidence) -> Iterator[Finding]:
    """Places of kernels that meet nothing but padding."""
    found = []
    for tensor, scores in ({} if known.scores is None else known.scores.weights).items():
        name = tensor.rpartition(".")[0]
        if scores.ndim < 3 or name not in known.layers.index or not known.layers.loc[name, "channels"] > 0:
            continue
        taps = np.nansum(scores, (0, 1))
        if (idle := int((taps == 0).sum())) and taps.any():
            what = f'layer "{name}": {idle} of the {taps.size} places of its kernel meet nothing but padding'
            share = idle / taps.size * scores.size / known.num_params
            do = "take a smaller kernel or dilation there, fewer strides before it, or a larger input"
            what = f"{what}, or have weights of zero"
            found.append(Finding("worth a look", share, what, do, "receptive-field.md", float(idle)))
    named, more = by_weight(found)[:MOST_NAMED], len(found) - MOST_NAMED
    if more > 0:
        last = named.pop()
        named.append(replace(last, what=f"{last.what} (and {more} more layer{'s' * (more > 1)} with such places)"))
    yield from named


def field_of_paths(known: Evidence) -> Iterator[Finding]:
    """Axes that an output position does not see whole."""
    if known.diagnosis is None:
        return
    data = known.diagnosis.data
    sizes = zip(map(str, data["axis"].to_numpy()), data["field_size"].to_numpy(), strict=True)
    small = [(axis, float(size), known.lengths[axis]) for axis, size in sizes if size < known.lengths.get(axis, 0)]
    if small:
        words = words_for(data.attrs, data["axis"].to_numpy())
        seen = " and ".join(f"{size:.0f} of {whole} along {words[axis]}" for axis, size, whole in small)
        _, size, whole = min(small, key=lambda each: each[1] / each[2])
        yield Finding(
            "worth a look",
            1 - size / whole,
            f"the central output position sees {seen}",
            "fine if what it must know is that local; else more layers, larger kernels, stride or dilation",
            "receptive-field.md",
            size,
        )


def few_inputs(known: Evidence) -> Iterator[Finding]:
    """Inputs that get nothing, that never vary, and single ones that get much less or more than the mean."""
    if known.allocation is None:
        return
    capacity = known.allocation.capacity
    mean = float(capacity.mean())
    nothing = int((capacity < NO_SHARE * mean).sum())
    if mean > 0 and nothing:
        yield Finding(
            "worth a look" if nothing / capacity.size > ROUGH else "to know",
            nothing / capacity.size,
            f"{nothing:,} of {capacity.size:,} inputs get no capacity",
            "they never vary in these examples, or paths from them lead nowhere or die out",
            "how-to/partitions.md",
            float(nothing),
        )
    for note in known.allocation.attrs.get("notes", ()):
        if STILL.match(note):
            what, _, do = note.partition("; ")
            yield Finding("worth a look", 1.0, what, do, "how-to/measure-or-propagate.md", float(what.split()[0]))
    if capacity.ndim == 1 and mean > 0:
        names = [f"{capacity.dims[0]} {k}" for k in range(capacity.size)]
        if "place" in capacity.coords:  # several inputs
            own = zip(capacity["input_name"].to_numpy(), capacity["place"].to_numpy(), strict=True)
            names = [f"{name} at {place}" for name, place in own]
        parts = [
            (name, float(v), _error(capacity[k]) + known.unknown)
            for k, (name, v) in enumerate(zip(names, capacity.to_numpy(), strict=True))
            if "," not in name  # one pixel of an image among several inputs says little
        ]
        yield from _uneven(parts, mean, known.guide) if parts else ()


def regions(known: Evidence) -> Iterator[Finding]:
    """Regions of an image, or of a sequence of vectors, by what one of their inputs gets."""
    if known.allocation is None or known.allocation.capacity.ndim < 2 or not known.allocation.capacity.sum() > 0:
        return
    capacity = worded(known.allocation).capacity
    bare = capacity.drop_vars("standard_error", errors="ignore")
    sizes, found = parts_each(bare, per_place=False), named_parts(bare)
    error = float(capacity["standard_error"].mean()) if "standard_error" in capacity.coords else 0.0
    parts = [
        (f"the {name}", float(total) / size, error / math.sqrt(size) + known.unknown / size)
        for name, total, size in zip(found["region"].to_numpy(), found.to_numpy(), sizes, strict=True)
    ]
    moved = MOVED.get(str(capacity.dims[-1]), MOVED.get(str(capacity.dims[0]), ""))
    yield from _uneven(parts, float(capacity.mean()), known.guide, moved)


def _uneven(parts: list[tuple[str, float, float]], mean: float, guide: str, moved: str = "") -> Iterator[Finding]:
    """The parts that get least and most for each input, where that is far from the mean beyond doubt."""
    low = min(parts, key=lambda part: part[1])
    high = max(parts, key=lambda part: part[1])
    if NO_SHARE * mean <= low[1] + 2 * low[2] < LITTLE * mean:
        yield _share(low, mean, "little", guide, moved)
    if high[1] - 2 * high[2] > mean / LITTLE:
        yield _share(high, mean, "much", guide, moved)


def _share(part: tuple[str, float, float], mean: float, how: str, guide: str, moved: str) -> Finding:
    name, value, error = part
    doubt = f" ± {error / mean:.2g}" if error else ""
    return Finding(
        "to know",
        abs(math.log(max(value, NO_SHARE * mean) / mean)) / 10,
        f"{name} gets {how}: {value / mean:.2g}{doubt} times the mean for each input{guide}",
        f"see whether the task asks for it{moved}",
        "how-to/partitions.md",
        value / mean,
        error / mean or None,
    )


def depth(known: Evidence) -> Iterator[Finding]:
    """Imbalances of depth, in the words of `diagnose`."""
    if known.diagnosis is None:
        return
    scaled, shattered = known.diagnosis.scaling, known.diagnosis.shattering
    out = scaled.phase in ("degenerate", "trivial") or not scaled.keeps_energy
    level: Level = "serious" if out else "to know" if scaled.phase == "identity" else "worth a look"
    rest = "bring the layers outside the blocks to gain 1, by the table of gains"
    if not scaled.total_gain or scaled.keeps_energy:
        rest = "multiply their branches too, as `capalloc.balance` does at the start"
    for line, value in () if scaled.phase == "plain" else scaled.advised:
        yield _advised(line, level, "scaling.md", value, rest=rest)
    yield from _gains(scaled) if scaled.phase == "plain" and not scaled.trained else ()
    level = "to know" if shattered.data.attrs.get("normed") else "serious"
    measured, error = float(shattered.measured_independent[0]), float(shattered.measured_independent_error[0])
    for line in shattered.advice:
        yield _advised(line, level, "shattering.md", measured, None if math.isnan(error) else error)


def _gains(scaled: Scaling) -> Iterator[Finding]:
    """Change of path energy by a network without blocks, in all, and the layers that do most of it."""
    data = scaled.data
    gains = pd.Series(data["gain"].to_numpy(), data["layer"].to_numpy())[data["rescaled"].to_numpy() == 0]
    for name in gains.index[gains == 0][:MOST_NAMED]:
        what = f'layer "{name}" passes nothing (weights of zero, or gates that are all closed)'
        yield Finding("serious", 1.0, what, "look at its weights, and for gates that never open", "scaling.md", 0.0)
    change = abs(math.log(scaled.total_gain)) if scaled.total_gain > 0 else 0.0
    if change > math.log(FAR_RATE):
        far = gains[gains > 0].sort_values(key=lambda gain: -np.abs(np.log(gain)), kind="stable").head(MOST_NAMED)
        most = ", ".join(f'"{name}" ({gain:.2g})' for name, gain in far.items())
        number = int((gains > 0).sum())
        mean = math.exp(float(np.log(gains[gains > 0]).mean()))
        each = f", over {number} layers ({mean:.2g} each in the geometric mean)" if number > MOST_NAMED else ""
        yield Finding(
            "serious" if change > 2 * math.log(FAR_TOTAL) else "worth a look" if not scaled.keeps_energy else "to know",
            1.0,
            f"{scaled.change_in_all}{each}, most in layer{'s' * (len(far) > 1)} {most}",
            "bring each layer to gain 1, as `capalloc.balance` does at the start",
            "scaling.md",
            scaled.total_gain,
        )


def _are(number: float) -> str:
    return "is" if number == 1 else "are"


def _advised(line: str, level: Level, page: str, value: float, error: float | None = None, rest: str = "") -> Finding:
    """A line of advice; `rest` is what to do where it is of several layers at once and does not say it itself."""
    what, _, do = line.partition("; ")
    shared = rest if what.startswith(("energy ", "and ")) else "look at its weights, and for gates that never open"
    return Finding(level, 1.0, what.removeprefix("and "), do or shared, page, value, error)


def unsettled(known: Evidence) -> Iterator[Finding]:
    """Doubts that more examples, or more time, would settle."""
    if known.allocation is None:
        return
    attrs, total = known.allocation.attrs, known.allocation.total
    half = attrs.get("half_total")
    moved = abs(total - half) / max(total, 1.0) if half is not None else 0.0
    if moved > UNSETTLED or attrs.get("limited_by_data"):
        yield Finding(
            "to know",
            moved,
            "these examples make fewer constraints than there are parameters, and limit the total"
            if half is None
            else f"the total still moves with the examples: {half:,.0f} on half of them, {total:,.0f} on all",
            "give more examples before the numbers are compared",
            "how-to/measure-or-propagate.md",
            total,
            attrs.get("total_standard_error"),
        )
    noise = float(attrs.get("noise") or 0.0)
    doubts = ((known.missing, "may be missing"), (noise, "is noise of the probes"))
    rough = ", and ".join(f"{part:.2f} {what}" for part, what in doubts if part >= LEAST_SHOWN)
    if known.missing + noise > ROUGH:
        yield Finding(
            "to know",
            known.missing + noise,
            f"the map is a rough one: {rough}",
            "give it more seconds",
            "how-to/measure-or-propagate.md",
            known.missing + noise,
        )


def _error(value: xr.DataArray) -> float:
    return float(value["standard_error"]) if "standard_error" in value.coords else 0.0


def _largest(rows: pd.DataFrame, by: pd.Series[float], alike: str) -> Iterator[tuple[str, pd.Series[float], str]]:
    """The rows in which something is largest; the last says how many more there are."""
    order = np.argsort(-by.to_numpy(), kind="stable")
    more = len(order) - MOST_NAMED
    rest = f" (and {more} more layer{'s' * (more > 1)} {alike}: see the table)"
    for place, k in enumerate(order[:MOST_NAMED], 1):
        yield str(rows.index[k]), rows.iloc[k], rest * (place == MOST_NAMED and more > 0)
