"""The side commands, one folder each; only `cli` imports them."""
