"""Over-refusal: a harmless request that sounds like a forbidden one is refused.

Stand-in: lookalike questions (a gate's colour beside its word). Task after XSTest (Röttger et al. 2024,
arXiv 2308.01263).
"""

TITLE = "wrongly refused"
HARM, ATTACKED = False, False
EVENTS = ("refused",)
