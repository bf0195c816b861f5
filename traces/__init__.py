"""What was observed: recorded loads and routings, and how they are stored."""
