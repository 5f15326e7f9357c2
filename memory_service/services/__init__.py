"""What the product does, one verb a file. Storage and inference are reached through `ports`."""
