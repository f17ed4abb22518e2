"""What happens to one shard on one machine. torch and zarr; no ray."""
