"""Planted faults: what the self-test and the tests break on purpose, and what a good report must say of each.

A fault never needs broken hardware: it is a small change of a private copy of the library, of a call, of a process, of
its conditions or of a cache file. ``catalogue/`` declares them, :mod:`~gpucheck.tools.selftest.injection`
plants them, :mod:`~gpucheck.tools.selftest.assess` reads the reports.
"""
