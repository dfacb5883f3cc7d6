"""Profiles of a model's modules as text: a line a module, then a line for every kind of module."""

import textwrap
from statistics import fmean, pstdev

from artent.commands.profile_numbers import SHARES, Number, nominal_rank, numbers, rank_keeping
from artent.entanglement import EntanglementProfile, printed

_WIDTH = 100  # of running text; tables are as wide as they must be
_NAMED = 12  # modules that did not change are named up to here, the others counted
_ENTROPIES = ("cut_entropy", "max_entropy", "valley_depth")
_SHARES = SHARES[1:]


def lines(profiles: dict[str, EntanglementProfile]):
    """The lines of the tables, of profiles by module name; none for no profiles."""
    if not profiles:
        return
    names = sorted(profiles, key=by_number)
    pattern, shown = short_names(names)
    every = [profiles[name] for name in names]
    yield f"Modules: {pattern}" if pattern else "Modules"
    titles = ["module", "shape", "effective rank", "S at cut", "max S", "valley", *_share_titles(), "method"]
    columns = [
        [shown[name] for name in names],
        ["{}×{}".format(*p.shape) for p in every],
        [f"{p.printed('effective_rank', 1)} of {nominal_rank(p)} used" for p in every],
        *([p.printed(name) for p in every] for name in _ENTROPIES),
        *([_ranks(p, share) for p in every] for share in _SHARES),
        [p.method for p in every],
    ]
    yield from _table(titles, columns)
    yield ""
    yield "Kinds of module: mean ± standard deviation over modules"
    yield from _kinds(names, profiles)
    yield ""
    yield from textwrap.wrap(_legend(every), _WIDTH)


def unchanged_lines(names):
    """The modules that did not change, named as far as there is room."""
    names = sorted(names, key=by_number)
    if not names:
        return
    more = f", … and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    count = f"{len(names)} modules" if len(names) > 1 else "1 module"
    yield from textwrap.wrap(f"{count} did not change: {', '.join(names[:_NAMED])}{more}", _WIDTH)


def kind_of(name: str) -> str:
    """What a module is called in its layer: the last part of its name that is no number."""
    return next((part for part in reversed(name.split(".")) if not part.isdecimal()), name)


def layer_of(name: str) -> int | None:
    """The first number in a module's name, None where there is none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def by_number(name: str):
    """A sorting key that puts layer 2 before layer 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def short_names(names):
    """(what all names have in common, with stars for the rest, or None; {name: its own parts})."""
    parts = {name: name.split(".") for name in names}
    if len(names) == 1:
        return None, dict(zip(names, names))
    if len({len(p) for p in parts.values()}) == 1:
        same = [len(set(at)) == 1 for at in zip(*parts.values())]
        pattern = [part if fixed else "*" for part, fixed in zip(parts[names[0]], same)]
        shown = {name: ".".join(part for part, fixed in zip(p, same) if not fixed) for name, p in parts.items()}
        return (".".join(pattern) if any(same) else None), shown
    common = 0
    while len({tuple(p[: common + 1]) for p in parts.values()}) == 1 and common < min(map(len, parts.values())) - 1:
        common += 1
    pattern = ".".join([*parts[names[0]][:common], "…"]) if common else None
    return pattern, {name: ".".join(p[common:]) for name, p in parts.items()}


def _kinds(names, profiles):
    groups = {}
    for name in names:
        groups.setdefault(kind_of(name), []).append(profiles[name])
    told = {kind: [numbers(p) for p in group] for kind, group in groups.items()}
    titles = ["kind", "modules", "effective rank", "S at cut", "max S", "valley", *_share_titles()]
    rows = [
        [
            kind,
            str(len(group)),
            _spread([t["effective_rank"] for t in told[kind]], 1) + _of(group),
            *(_spread([t[name] for t in told[kind]]) for name in _ENTROPIES),
            *(_mean_ranks(group, share) for share in _SHARES),
        ]
        for kind, group in groups.items()
    ]
    yield from _table(titles, list(zip(*rows)))


def _of(group):
    nominal = {nominal_rank(p) for p in group}
    return f" of {nominal.pop()}" if len(nominal) == 1 else ""


def _spread(group: list[Number], digits=2):
    """Mean ± standard deviation, of estimates and where bounds agree; else the interval of the mean."""
    if any(x.stderr for x in group):
        low = high = fmean(x.value for x in group)
    else:
        low, high = fmean(x.low for x in group), fmean(x.high for x in group)
    mean = printed(low, high, digits)
    return mean if len(group) == 1 or "…" in mean else f"{mean} ± {pstdev(x.value for x in group):.{digits}f}"


def _ranks(profile, share):
    least, most = rank_keeping(profile, share)
    if least < most == min(profile.shape):
        return f"≥ {least}"
    return str(least) if least == most else f"{least} … {most}"


def _mean_ranks(group, share):
    bounds = [rank_keeping(p, share) for p in group]
    if any(least < most == min(p.shape) for p, (least, most) in zip(group, bounds)):
        return f"≥ {fmean(least for least, _ in bounds):.1f}"
    return _spread([Number((least + most) / 2, least, most, 0.0) for least, most in bounds], 1)


def _share_titles():
    return [f"{share:.0%}".replace("%", " % in") for share in _SHARES]


def _legend(profiles):
    first = profiles[0]
    symbol = "S" if first.alpha == 1 else f"S, Rényi {first.alpha:g},"
    nats = "" if first.log_base is None else ", with S in nats"
    text = (
        f"{symbol} in {first.unit}. Effective rank: exp S at the row|column cut{nats}. Valley: max S − S at the cut. "
        "90 % in: the rank whose best approximation keeps 90 % of ‖ΔW‖²."
    )
    if any(p.stderr.any() for p in profiles):
        text += " a ± b: an estimate and its standard error."
    if any(p.method != "exact" for p in profiles):
        text += " a … b: certain bounds, one number where they agree."
    return text


def _table(titles, columns):
    widths = [max(map(len, (title, *column))) for title, column in zip(titles, columns, strict=True)]
    for row in (titles, *zip(*columns, strict=True)):
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        yield "  ".join(cells).rstrip()
