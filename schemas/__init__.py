"""What things are: configuration, examples, shards, stored arrays and rows. No torch, no ray."""
