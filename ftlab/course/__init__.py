"""The course: exercises that grade themselves, offline, from what the student computed."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["lessons"],
    submod_attrs={
        "checking": ["check"],
        "exercises": ["Exercise", "Grade", "Lesson"],
        "grading": ["compare_functions", "compare_numbers", "choice", "sealed"],
    },
)
