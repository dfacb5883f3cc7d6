"""What a study would take before it starts: memory, disk and time, without gradients and without reading weights."""

from artent.study.estimate.dry import Estimate, MethodEstimate, dry_run

__all__ = ["Estimate", "MethodEstimate", "dry_run"]
