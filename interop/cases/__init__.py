"""The cases, by what they are about; each module says in `TITLES` what it shows.

A module's `rows(world, directions)` yields `(direction, title, function)`; the function takes nothing, returns the
detail for the table and raises `Failed` if the case does not hold. Directions are `Go > ramjet` and the like: the
first of the two begins.
"""

GO_TO_RAMJET = "Go > ramjet"
RAMJET_TO_GO = "ramjet > Go"
GO_TO_GO = "Go > Go"
BOTH_WAYS = (GO_TO_RAMJET, RAMJET_TO_GO)
EVERY_WAY = (GO_TO_RAMJET, RAMJET_TO_GO, GO_TO_GO)
