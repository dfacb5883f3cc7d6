"""Which names ``targets`` means, as PEFT's ``target_modules`` does."""

import re


def select(names, targets, whose):
    """The names that ``targets`` means: None is all; a string is a regular expression for the whole name; a
    list holds names or their endings (whole parts between dots), as PEFT's ``target_modules`` does.

    Raises:
        ValueError: a target that matches nothing, an empty list, or a string that is no regular expression.
        TypeError: ``targets`` is something else.
    """
    names = list(names)
    if targets is None:
        return names
    if isinstance(targets, str):
        try:
            chosen = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"targets={targets!r} is not a regular expression: {error}") from None
        if not chosen:
            raise ValueError(
                f"targets={targets!r} matches none of the {len(names)} {whose} ({few(names)}). A string is "
                f"a regular expression for the whole name; for endings pass a list, such as [{targets!r}] (on the "
                "command line with commas between them)"
            )
        return chosen
    if not isinstance(targets, list | tuple | set | frozenset) or not all(isinstance(t, str) for t in targets):
        raise TypeError(f"targets must be None, a regular expression or a list of name endings, not {targets!r}")
    if not targets:
        raise ValueError("targets is empty: pass None for every weight, or name some")
    found = {target: [n for n in names if f".{n}".endswith(f".{target}")] for target in targets}
    if missing := sorted(target for target in targets if not found[target]):
        raise ValueError(
            f"targets {missing} match none of the {len(names)} {whose} ({few(names)}). Likely cause: a "
            "typing error, or another model family's names"
        )
    chosen = set().union(*found.values())
    return [name for name in names if name in chosen]


def meant(name: str, targets) -> bool:
    """Does ``targets``, which :func:`select` has accepted, mean this name?"""
    if targets is None:
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(f".{name}".endswith(f".{target}") for target in targets)


def few(names):
    """The first names, and how many there are."""
    names = list(names)
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
