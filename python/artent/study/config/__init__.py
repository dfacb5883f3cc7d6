"""What a study does, as a value: read from YAML, changed on the command line, checked before anything runs."""

from artent.study.config.load import as_config, config_names, described, named_config, override
from artent.study.config.methods import CONTROLS, KINDS, Method, Sweep
from artent.study.config.schema import StudyConfig, Variation
from artent.study.config.sections import DataConfig, JudgeConfig, MeasureConfig, ModelConfig, TrainingConfig

__all__ = [
    "CONTROLS",
    "KINDS",
    "DataConfig",
    "JudgeConfig",
    "MeasureConfig",
    "Method",
    "ModelConfig",
    "StudyConfig",
    "Sweep",
    "TrainingConfig",
    "Variation",
    "as_config",
    "config_names",
    "described",
    "named_config",
    "override",
]
