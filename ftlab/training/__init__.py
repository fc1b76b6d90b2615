"""Training: cells, settings, methods, and the one path from a parent to a trained run."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cells": [
            "check_length",
            "current_settings",
            "dpo",
            "kto",
            "rloo",
            "sft",
            "train",
            "train_reward_model",
        ],
        "config": ["DEVICES", "NOT_IN_IDENTITY", "TrainingConfig"],
        "defences": ["Defence", "open_defence"],
        "oom": ["Fit"],
        "methods": ["FirstStep", "Job", "Method", "curve_configs", "open_method"],
        "monitoring": ["Monitor", "function_identity"],
        "ranking": [
            "ANCHORED",
            "RANKINGS",
            "Given",
            "anchors",
            "answer_labels",
            "batches_of_one_length",
        ],
        "trainer": ["prepared", "short_name", "train_run", "trainable", "with_learning_rate"],
        "transforming": ["transform"],
        "transforms": ["Transform", "open_transform"],
    },
)
