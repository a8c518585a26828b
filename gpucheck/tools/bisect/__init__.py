"""Searches what made a case fail, or fixed it: over commits, releases or patches.

``search``, ``minimise`` and ``repeats`` are pure; ``step`` makes the real runs; ``sources`` say what there is to try.
"""
