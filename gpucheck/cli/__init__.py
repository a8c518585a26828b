"""The commands, one file each; a command parses its options, calls other folders and prints what they return."""
