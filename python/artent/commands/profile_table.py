"""Profiles of a model's modules as text: a line a module, then a line for every kind of module."""

import textwrap
from statistics import fmean, pstdev

from artent.entanglement import EntanglementProfile, printed

_WIDTH = 100  # of running text; tables are as wide as they must be
_NAMED = 12  # modules that did not change are named up to here, the others counted
SHARES = (0.9, 0.99)


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
        [f"{_interval(p.effective_rank_bounds, 1)} of {nominal_rank(p)} used" for p in every],
        [_interval(p.cut_bounds) for p in every],
        [_interval(max_bounds(p)) for p in every],
        [_interval(p.valley_bounds) for p in every],
        *([_ranks(rank_keeping(p, share)) for p in every] for share in SHARES),
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
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def layer_of(name: str) -> int | None:
    """The first number in a module's name, None where there is none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def by_number(name: str):
    """A sorting key that puts layer 2 before layer 10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


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


def nominal_rank(profile) -> int:
    """The rank that a factored update was given, or the most that a dense one could have."""
    return profile.rank if profile.rank is not None else min(profile.shape)


def max_bounds(profile):
    """Certain bounds on max_l S(l); both equal to it where the profile is exact."""
    return tuple(float(S.amax()) if profile.bonds else 0.0 for S in (profile.lower, profile.upper))


def rank_keeping(profile, share: float) -> tuple[int, int]:
    """(least, most) of the rank whose best approximation keeps ``share`` of ‖ΔW‖²; equal where the cut is exact.

    A sketch's probabilities p̂ at the cut are lower bounds, and what they leave out, ε = 1 − Σp̂, could all belong to
    the first: Σ_{i≤k} p̂_i ≤ kept(k) ≤ Σ_{i≤k} p̂_i + ε (docs/math.md §3).
    """
    kept = profile.cut_probabilities.detach().cumsum(0) + 1e-9  # nine of ten equal ones keep 0.9, rounding or not
    exact = profile.cut not in profile.bonds or profile.bond_methods[profile.cut - 1] == "exact"
    left_out = 0.0 if exact else max(0.0, 1.0 - float(kept[-1]))
    least = 1 + int((kept + left_out < share).sum())
    most = 1 + int((kept < share).sum())
    return (least, most) if most <= len(kept) else (min(least, len(kept)), min(profile.shape))


def _kinds(names, profiles):
    groups = {}
    for name in names:
        groups.setdefault(kind_of(name), []).append(profiles[name])
    titles = ["kind", "modules", "effective rank", "S at cut", "max S", "valley", *_share_titles()]
    rows = [
        [
            kind,
            str(len(group)),
            _spread([p.effective_rank_bounds for p in group], 1) + _of(group),
            _spread([p.cut_bounds for p in group]),
            _spread([max_bounds(p) for p in group]),
            _spread([p.valley_bounds for p in group]),
            *(_spread([rank_keeping(p, share) for p in group], 1) for share in SHARES),
        ]
        for kind, group in groups.items()
    ]
    yield from _table(titles, list(zip(*rows)))


def _of(group):
    nominal = {nominal_rank(p) for p in group}
    return f" of {nominal.pop()}" if len(nominal) == 1 else ""


def _spread(bounds, digits=2):
    """Mean ± standard deviation of what bounds agree on; the interval of the mean where they do not."""
    low, high = ([float(x) for x in side] for side in zip(*bounds))
    mean = printed(fmean(low), fmean(high), digits)
    if len(low) == 1 or "…" in mean:
        return mean
    return f"{mean} ± {pstdev((a + b) / 2 for a, b in zip(low, high)):.{digits}f}"


def _interval(bounds, digits=2):
    return printed(*(float(bound) for bound in bounds), digits)


def _ranks(bounds):
    least, most = bounds
    return str(least) if least == most else f"{least} … {most}"


def _share_titles():
    return [f"{share:.0%}".replace("%", " % in") for share in SHARES]


def _legend(profiles):
    first = profiles[0]
    symbol = "S" if first.alpha == 1 else f"S, Rényi {first.alpha:g},"
    text = (
        f"{symbol} in {first.unit}. Effective rank: exp S at the row|column cut. Valley: max S − S at the cut. "
        "90 % in: the rank whose best approximation keeps 90 % of ‖ΔW‖²."
    )
    if any(p.method != "exact" for p in profiles):
        text += " a … b: certain bounds of what was estimated; one number where they agree."
    return text


def _table(titles, columns):
    widths = [max(map(len, (title, *column))) for title, column in zip(titles, columns, strict=True)]
    for row in (titles, *zip(*columns, strict=True)):
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        yield "  ".join(cells).rstrip()
