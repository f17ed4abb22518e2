"""Models as users write them."""
