"""Planted faults: what the self-test breaks on purpose, and what the report must say about each.

A fault never needs broken hardware: it is a small change of a private copy of the library, of a call, of a process, of
its conditions or of a cache file. ``catalogue/`` declares them, :mod:`~gpucheck.tools.selftest.injection`
plants them, :mod:`~gpucheck.tools.selftest.assess` reads the reports.
"""
