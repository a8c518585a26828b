"""Every multiprocessor of a GPU against exact data: which one is silently wrong, and how sure a clean screen is."""
