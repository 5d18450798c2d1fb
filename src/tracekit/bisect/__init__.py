"""Bisects the difference of two traces: which settings of a replay take the scores of one to those of the other."""
