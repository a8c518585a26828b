"""Starts one rank a GPU with torchrun, on one node or several, and ends all of them whatever happens."""
