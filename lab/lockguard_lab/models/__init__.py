"""Checks the models of ``spec/`` with Spin: ``scripts/models``.

A model is exhausted within bounds, in a directory of its own. Each has mistakes, planted by ``#ifdef``, which
have to be convicted: a model that convicts none would prove nothing.
"""
