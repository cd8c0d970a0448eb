"""The parameter shard: update rules, averaging, admission, applied set, push log."""
