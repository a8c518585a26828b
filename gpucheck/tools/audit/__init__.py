"""Finds code of the library that depends on the wrong device, and confirms it under two stand-in devices.

:mod:`gpucheck.tools.audit.scan` reads source only (``ast``);
:mod:`gpucheck.tools.audit.probe` runs the library's host code in a
process of its own. A hazard is information, not a failure.
"""
