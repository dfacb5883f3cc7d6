"""The data of the page's explorer: every module's profiles by method, step and seed, and what they are judged by."""

from __future__ import annotations

from artent.study.report.overview import NULLS

__all__ = ["explorer", "thinned"]

MOST_STEPS = 24  # of a longer study every k-th and the last: the tables hold them all


def explorer(view):
    """Profiles as lists over the bonds, nulls once a shape; entropies in nats."""
    steps = thinned(view.steps)
    shapes, modules, layers = [], {}, []
    for matrix, by_layer in view.matrices.items():
        for layer, module in by_layer.items():
            modules[f"{matrix}|{layer}"] = {
                "cut": view.s.last(view.s.runs[0], module).cut,
                "methods": {m.name: _explored(view, m, module, steps, shapes) for m in view.methods},
            }
            layers += [str(layer)] if str(layer) not in layers else []
    styles = {key: {"name": name, "dash": dash, "width": width} for key, name, dash, width in NULLS}
    colors = {"bound": "ink", "haar": "other"}
    return {
        "methods": [{"key": m.name, "label": m.label, "rank": m.rank, **view.style[m.name]} for m in view.methods],
        "steps": steps,
        "layers": layers,
        "modules": modules,
        "nulls": shapes,
        "nullStyles": [{"key": key, "color": colors.get(key, "null"), **style} for key, style in styles.items()],
    }


def _explored(view, method, module, steps, shapes):
    """One method's profiles of a module: steps × seeds × bonds; null where there was no update yet."""
    stages = view.stages(method)
    own = [view.s.profiles[stage][module] for stage in stages]
    null = view.s.nulls.get(stages[0], {}).get(module)
    found = {
        "seeds": [seed for _, seed in stages],
        "rank": method.rank,
        "steps": [
            [at[step].entropy.tolist() if step in at else None for at in own] if any(step in at for at in own) else None
            for step in steps
        ],
    }
    if null is not None:
        keys = {"bound": "bound", "line": "line", "gaussian": "gaussian", "spread": "gaussian_spread"}
        shape = {key: null.get(recorded) for key, recorded in keys.items()}
        if shape not in shapes:
            shapes.append(shape)
        found |= {"null": shapes.index(shape), "haar": null.get("haar")}
    return found


def thinned(steps):
    """At most ``MOST_STEPS`` of the steps, the last among them."""
    if len(steps) <= MOST_STEPS:
        return steps
    stride = -(-len(steps) // (MOST_STEPS - 1))
    return sorted({*steps[::-1][::stride], steps[-1]})
