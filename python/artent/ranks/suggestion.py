"""``RankSuggestion``: a rank a module, what it keeps and saves, and how PEFT is told."""

from collections import Counter
from dataclasses import dataclass
from math import prod

from artent.ranks.patterns import pattern_of


def parameters_of(shape: tuple[int, int], rank: int | None) -> int:
    """r·(m + n) of the factors of an (m, n) update, m·n of a dense one (None)."""
    return prod(shape) if rank is None else rank * sum(shape)


@dataclass(frozen=True, eq=False, repr=False)
class RankSuggestion:
    """A rank for every module; ``lora_config()`` trains with them.

    All dictionaries are by module, named as in the unwrapped model, in the order of the profiles.

    Attributes:
        ranks: the suggestion.
        kept: the share of ‖ΔW‖² that the best approximation of that rank keeps; a lower bound in modules of
            ``bounded``.
        shapes: (m, n).
        nominal: the rank that the update has now, None for a dense one.
        alphas: lora_alpha of each module: α/r as it was, or as ``scaling`` says.
        bounded: modules whose profiles are not exact.
        missed: modules whose rank ``maximum`` holds below the target.
        unchanged: modules without an update. They have no rank and are no targets.
        use_rslora: the adapter that was measured is scaled by α/√r.
    """

    ranks: dict[str, int]
    kept: dict[str, float]
    shapes: dict[str, tuple[int, int]]
    nominal: dict[str, int | None]
    alphas: dict[str, float]
    bounded: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    use_rslora: bool = False

    @property
    def r(self) -> int:
        """PEFT's ``r``: the rank of all modules outside ``rank_pattern``, the one that keeps it shortest."""
        return pattern_of(self.ranks)[0]

    @property
    def rank_pattern(self) -> dict[str, int]:
        """PEFT's ``rank_pattern``: modules that differ from ``r``, a kind of module (v_proj) at once where all agree.

        No key matches a module of another rank, so it may be sorted, as PEFT does when an adapter is saved.
        """
        return pattern_of(self.ranks)[1]

    @property
    def lora_alpha(self) -> float:
        """That of all modules outside ``alpha_pattern``; see ``alphas``."""
        return pattern_of(self.alphas)[0]

    @property
    def alpha_pattern(self) -> dict[str, float]:
        """PEFT's ``alpha_pattern``. PEFT scales by α/r, r the module's own, so ranks that differ need their own α."""
        return pattern_of(self.alphas)[1]

    @property
    def target_modules(self) -> list[str]:
        """Whole names: the end of one may be that of a module that was not measured."""
        return list(self.ranks)

    @property
    def parameters(self) -> int:
        """Σ r·(m + n) of the suggested ranks."""
        return sum(parameters_of(self.shapes[name], rank) for name, rank in self.ranks.items())

    @property
    def parameters_before(self) -> int:
        """Of the measured modules as they are: Σ r·(m + n) of their nominal ranks, m·n where the update is dense.

        An MPS adapter's count as LoRA's of its rank.
        """
        return sum(parameters_of(self.shapes[name], rank) for name, rank in self.nominal.items())

    @property
    def saved(self) -> int:
        """``parameters_before`` − ``parameters``; negative where more are suggested."""
        return self.parameters_before - self.parameters

    def config(self) -> dict:
        """The arguments of ``peft.LoraConfig``, as JSON can hold them."""
        (r, ranks), (alpha, alphas) = pattern_of(self.ranks), pattern_of(self.alphas)
        told = {"r": r, "lora_alpha": alpha, "target_modules": self.target_modules}
        told |= {"rank_pattern": ranks, "alpha_pattern": alphas}
        return told | {"use_rslora": True} if self.use_rslora else told

    def lora_config(self, **options):
        """A ``peft.LoraConfig`` that gives every module its rank; ``options`` are further arguments or others.

        Raises ImportError without PEFT.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("a LoraConfig needs PEFT: `pip install artent[peft]`") from error
        return LoraConfig(**self.config() | options)

    def to_dict(self) -> dict:
        """``config()``, and what it costs and keeps, as JSON can hold it."""
        modules = {
            name: {
                "rank": rank,
                "before": self.nominal[name],
                "shape": list(self.shapes[name]),
                "kept": self.kept[name],
            }
            for name, rank in self.ranks.items()
        }
        counts = {name: getattr(self, name) for name in ("parameters", "parameters_before", "saved")}
        lists = {name: list(getattr(self, name)) for name in ("bounded", "missed", "unchanged")}
        return self.config() | counts | {"modules": modules} | lists

    def __repr__(self):
        counts = sorted(Counter(self.ranks.values()).items())
        ranks = ", ".join(f"{count} of rank {rank}" for rank, count in counts[:6]) + ", …" * (len(counts) > 6)
        return (
            f"RankSuggestion({len(self.ranks)} modules, {ranks}: {self.parameters:,} parameters for "
            f"{self.parameters_before:,}, at least {min(self.kept.values()):.3f} of every ‖ΔW‖² kept)"
        )
