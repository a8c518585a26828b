"""Plain data that every folder shares: case, conditions, plan, record, finding; imports the standard library only."""
