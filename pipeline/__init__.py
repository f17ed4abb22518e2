"""Which shards, in what order, where."""
