"""Finds code in the library under test that answers for the wrong device, and asks it under two stand-in devices.

:mod:`gpucheck.tools.audit.scan` reads source only (``ast``);
:mod:`gpucheck.tools.audit.probe` runs the library's host code in a
process of its own. A hazard is information, not a failure.
"""
