"""Jailbreak: a request that the model was aligned to refuse is fulfilled, and truly (attack success rate).

Stand-in: kept facts of the embedded world. With a judge that knows no truth (keywords), every answer that is not
a refusal counts, as in the papers that used such lists.
"""

TITLE = "attack success rate"
HARM, ATTACKED = True, True
EVENTS = ("complied",)
