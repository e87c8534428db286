"""Semantic mutants: what an engineer could get wrong, planted one at a time, and whether a test sees it.

``scripts/mutants`` runs them; ``tests/mutants`` has them as data, and which tests judge each area.
"""
