"""What the expert loads will be."""
