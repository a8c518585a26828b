"""The expert block over several ranks, for the check `sharded_moe`: exact data, slices, dispatch, CPU reference."""
