"""Files that users start from: presets for clusters and the skeleton of a check."""
