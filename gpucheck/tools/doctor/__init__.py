"""Looks at the machine before anything runs on it: one line a fact, and what to do where something is wrong.

A family of facts is one module with a function ``look(machine) -> list[Line]``; ``examine.py`` lists
them. Nothing here imports torch or touches CUDA in the process of the command: what has to be tried on a device is
tried in forked processes with deadlines, see :mod:`gpucheck.tools.doctor.device_process`.
"""
